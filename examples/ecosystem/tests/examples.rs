//! Every example of this folder runs against a real peer, as those in the folder above do. Some of
//! these are the peers, so they must have been built: `cargo test`, or `cargo build --examples`, in
//! the root of the project builds all.

#[path = "../../../tests/common_examples/mod.rs"]
mod common_examples;

use common_examples::{ANY_PORT, Program, assert_all_run, assert_has, run};
use std::net::TcpStream;

const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/common/certificate.pem");

// ---------- HTTP ----------

#[test]
fn simple_server_answers_simple_client_with_and_without_tls() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let http = server.wait_for("Listening on http://");
    let https = server.wait_for("Listening on https://");
    let port = https.rsplit(':').next().expect("a port");

    assert_has(&run("simple-client", &[&format!("http://{http}/")]), "Hello from smol!");
    assert_has(&run("simple-client", &[&format!("http://{http}/nowhere")]), "404 Not Found");
    assert_has(&run("simple-client", &[&format!("https://{https}/about")]), "A server by hand.");
    assert_has(&run("simple-client", &[&format!("https://localhost:{port}")]), "Hello from smol!");
}

#[test]
fn simple_server_answers_curl_which_trusts_only_its_certificate() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let http = server.wait_for("Listening on http://");
    let https = server.wait_for("Listening on https://");

    if let Some(curl) = Program::curl(&[&format!("http://{http}/")]) {
        assert_has(&curl.succeed(), "Hello from smol!");
    }
    if let Some(curl) = Program::curl(&["--cacert", CERTIFICATE, &format!("https://{https}/")]) {
        assert_has(&curl.succeed(), "Hello from smol!");
    }
    // A client that does not trust it breaks off, and the server goes on.
    if let Some(curl) = Program::curl(&[&format!("https://{https}/")]) {
        assert!(!curl.end().0.success());
        assert_has(&run("simple-client", &[&format!("https://{https}/")]), "Hello from smol!");
    }
}

#[test]
fn async_h1_server_answers_async_h1_client_and_curl() {
    let mut server = Program::example("async-h1-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");

    let page = run("async-h1-client", &[&format!("{url}/page")]);
    assert_has(&page, "200\nHello from smol and async-h1!");
    server.wait_for("GET ");

    if let Some(curl) = Program::curl(&["-d", "a body that nobody reads", &url, &url]) {
        assert_eq!(curl.succeed().matches("Hello from smol and async-h1!").count(), 2);
    }
}

#[test]
fn web_crawler_visits_the_pages_of_simple_server() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let addr = server.wait_for("Listening on http://");

    let printed = run("web-crawler", &[&addr]);
    assert_has(&printed, "\n/about: ");
    assert_has(&printed, "\n2 pages");
}

#[test]
fn other_runtimes_fetches_a_page_through_tokio() {
    assert_has(&run("other-runtimes", &[]), "answers 200 OK\nHello from smol!");

    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");
    assert_has(&run("other-runtimes", &[&url]), "answers 200 OK\nHello from smol!");
}

// ---------- TLS and WebSockets ----------

#[test]
fn tls_server_echoes_what_tls_client_types() {
    let mut server = Program::example("tls-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on ");

    // Somebody who connects and says nothing holds up nobody.
    let _silent = TcpStream::connect(&addr).expect("the server listens");

    let mut client = Program::example("tls-client", &[&addr]);
    for line in ["hello", "a secret"] {
        client.type_line(line);
        client.wait_for(line);
    }
    client.succeed();
}

#[test]
fn websocket_server_echoes_what_websocket_client_types() {
    let mut server = Program::example("websocket-server", &[ANY_PORT, ANY_PORT]);
    let ws = server.wait_for("Listening on ws://");
    let wss = server.wait_for("Listening on wss://");

    for url in [format!("ws://{ws}/"), format!("wss://{wss}/")] {
        let mut client = Program::example("websocket-client", &[&url]);
        client.wait_for("Connected: 101");
        for line in ["hello", "a second message"] {
            client.type_line(line);
            client.wait_for(&format!("Received: {line}"));
        }
        client.end_input();
        client.wait_for("Closed");
        client.succeed();
        server.wait_for("has left");
    }
}

// ---------- all of them ----------

#[test]
fn every_example_is_run_here_and_says_what_it_is_and_how_to_run_it() {
    assert_all_run(".", include_str!("examples.rs"));
}
