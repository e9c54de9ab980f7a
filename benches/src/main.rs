// The modules are declared in `lib.rs`: two programs share them, this one and `smol-bench-counted`.
fn main() {
    smol_bench::main();
}
