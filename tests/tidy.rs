//! The prose is true: what README and the comments of `src/lib.rs` state as facts is checked here. Only what rots is checked, never
//! taste; some numbers about the file are printed (`cargo test --test tidy -- --nocapture`).

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Fails with all violations at once.
fn report(mut violations: Vec<String>) {
    violations.sort();
    violations.dedup();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// A line of source: what it does (with empty strings and characters), and what it says.
#[derive(Default)]
struct Line {
    code: String,
    comment: String,
}

fn lines_of(source: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let mut rest = source;
    while let Some(char) = rest.chars().next() {
        let line = lines.last_mut().unwrap();
        let mut len = char.len_utf8();
        match char {
            '\n' => lines.push(Line::default()),
            '/' if rest.starts_with("//") => {
                len = rest.find('\n').unwrap_or(rest.len());
                line.comment = rest[..len].to_owned();
            }
            '"' => {
                let before = line.code.trim_end_matches('#');
                let is_raw = before.ends_with('r');
                let hashes = if is_raw { &line.code[before.len()..] } else { "" };
                let end = format!("\"{hashes}");
                while !rest[len..].starts_with(&end) {
                    let escape = !is_raw && rest[len..].starts_with('\\');
                    let skip = rest[len..].chars().take(1 + escape as usize);
                    len += skip.map(char::len_utf8).sum::<usize>();
                }
                len += end.len();
                line.code.push_str("\"\"");
                lines.extend(rest[..len].matches('\n').map(|_| Line::default()));
            }
            // A character, or else a lifetime.
            '\'' if rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'') => {
                let inside = if rest.starts_with("'\\") { 3 } else { 2 };
                len = inside + rest[inside..].find('\'').unwrap() + 1;
                line.code.push_str("' '");
            }
            _ => line.code.push(char),
        }
        rest = &rest[len..];
    }
    lines
}

/// The words of a line of code, each with what stands before and after it.
fn words(code: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_start = move |&(at, c): &(usize, char)| is_part(c) && !code[..at].ends_with(is_part);
    code.char_indices().filter(is_start).map(move |(at, _)| {
        let rest = code[at..].trim_start_matches(is_part);
        let word = &code[at..code.len() - rest.len()];
        (code[..at].trim_end(), word, rest.trim_start())
    })
}

/// The number in front of `what`, as in "5,400 lines".
fn number_before(text: &str, what: &str) -> usize {
    let before = text.split(what).next().unwrap();
    let number = before.rsplit(|c: char| c != ',' && !c.is_ascii_digit());
    let number = number.map(|number| number.replace(',', "")).next();
    number.unwrap().parse().unwrap_or_else(|_| panic!("how many{what}?"))
}

/// The numbers of `§1 §3-§5`.
fn section_numbers(text: &str) -> Vec<usize> {
    let number = |text: &str| text.trim_start_matches('§').parse().ok();
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(number(first)?..=number(last)?)
    };
    text.split_whitespace().filter_map(range).flatten().collect()
}

struct Section {
    number: usize,
    banner: String,
    lines: Range<usize>,
    /// What its head says; `None` is "all".
    uses: Option<Vec<usize>>,
    used_by: Option<Vec<usize>>,
}

fn sections(lines: &[Line]) -> Vec<Section> {
    let is_banner = |at: &usize| lines[*at].comment.starts_with("// §");
    let starts: Vec<_> = (0..lines.len()).filter(is_banner).collect();
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    let section = |(&start, end): (&usize, usize)| {
        for bar in [start - 1, start + 1] {
            assert!(lines[bar].comment.starts_with("// ===="), "line {}: no banner", bar + 1);
        }
        let banner = lines[start].comment[3..].to_owned();
        let mut head = lines[start..end].iter().map(|line| line.comment.as_str());
        let head = head.find(|text| text.starts_with("// uses ")).expect(&banner);
        let fact = |which: &str| {
            let fact = head[2..].split('·').find_map(|fact| fact.trim().strip_prefix(which));
            let fact = fact.unwrap_or_default();
            (fact != "all").then(|| section_numbers(fact))
        };
        let (uses, used_by) = (fact("uses "), fact("used by "));
        let number = section_numbers(banner.split_once(' ').unwrap().0)[0];
        Section { number, banner, lines: start..end, uses, used_by }
    };
    starts.iter().zip(ends).map(section).collect()
}

/// What a line defines: its kind and its name.
fn definition(code: &str) -> Option<(&str, &str)> {
    let kinds = "fn struct enum trait static const type mod macro_rules";
    let mut words = words(code).map(|(_, word, _)| word).peekable();
    while let Some(word) = words.next() {
        let next = *words.peek()?;
        let is_kind = |word| kinds.split(' ').any(|kind| kind == word);
        if is_kind(word) && !is_kind(next) {
            return (next != "_").then_some((word, next));
        }
        if !["pub", "async", "const", "unsafe"].contains(&word) {
            return None;
        }
    }
    None
}

/// All that is defined at the top level: name, kind and line.
fn definitions(lines: &[Line]) -> BTreeMap<&str, (&str, usize)> {
    let mut found = BTreeMap::new();
    let mut top = 0;
    for (at, line) in lines.iter().enumerate() {
        match line.code.as_str() {
            "thread_local! {" | "pin_project! {" => top = 4,
            "}" => top = 0,
            code if code.len() - code.trim_start().len() == top => {
                if let Some((kind, name)) = definition(code) {
                    found.entry(name).or_insert((kind, at));
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_header_lists_the_sections_and_their_numbers_are_consecutive() {
    let source = read("src/lib.rs");
    let sections = sections(&lines_of(&source));
    let numbers = sections.iter().map(|section| section.number);
    assert!(numbers.eq(1..=sections.len()));
    let banners: Vec<_> = sections.iter().map(|section| section.banner.as_str()).collect();
    let items = source.lines().filter_map(|line| line.strip_prefix("//! - "));
    assert_eq!(banners, items.filter(|item| item.starts_with('§')).collect::<Vec<_>>());
}

#[test]
fn a_section_uses_what_its_head_says_and_nothing_from_below() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let sections = sections(&lines);
    let definitions = definitions(&lines);
    let mut violations = Vec::new();
    for section in &sections {
        for (at, (before, word, after)) in
            section.lines.clone().flat_map(|at| words(&lines[at].code).map(move |word| (at, word)))
        {
            // Methods, fields, variants, and local names that happen to be the same.
            let is_path = before.ends_with("::") && !before.ends_with("crate::");
            let is_member = before.ends_with('.') && !before.ends_with("..");
            let Some((kind, place)) = definitions.get(word) else {
                continue;
            };
            let is_other = match *kind {
                "fn" => !(after.starts_with('(') || after.starts_with("::<")),
                "macro_rules" => !after.starts_with('!'),
                "mod" => !after.starts_with("::"),
                _ => false,
            };
            let home = sections.iter().find(|home| home.lines.contains(place)).unwrap();
            let (here, there) = (section.number, home.number);
            if is_path || is_member || is_other || before.ends_with("fn") || here == there {
                continue;
            }
            let fact = format!("§{here} uses `{word}` of §{there}");
            if there > here {
                violations.push(format!("{fact}, which is below (line {})", at + 1));
            }
            let Some(uses) = &section.uses else { continue };
            if !uses.contains(&there) {
                violations.push(format!("{fact}; the head of §{here} does not say so"));
            }
            if home.used_by.as_ref().is_some_and(|users| !users.contains(&here)) {
                violations.push(format!("{fact}; the head of §{there} does not say so"));
            }
        }
    }
    report(violations);
}

#[test]
fn each_ordering_says_why() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let says = |line: &Line| line.comment.contains("Ordering:");
    let uses = (6..lines.len()).filter(|&at| lines[at].code.contains("Ordering::"));
    let silent = uses.filter(|&at| !lines[at - 6..=at].iter().any(says));
    report(silent.map(|at| format!("line {}: no `Ordering:`", at + 1)).collect());
}

#[test]
fn each_unsafe_says_why_it_is_safe_and_readme_knows_how_many() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let is_unsafe = |at: &usize| words(&lines[*at].code).any(|(_, word, _)| word == "unsafe");
    let blocks: Vec<_> = (0..lines.len()).filter(is_unsafe).collect();
    for &at in &blocks {
        let above = lines[..at].iter().rev().map(|line| line.comment.as_str());
        let mut above = above.take_while(|comment| !comment.is_empty());
        assert!(above.any(|comment| comment.starts_with("// SAFETY:")), "line {}", at + 1);
    }
    assert_eq!(blocks.len(), number_before(&read("README.md"), " `unsafe` blocks"));
}

#[test]
fn cited_tests_and_invariants_exist() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let mut violations = Vec::new();
    // Comments as running text, since a citation may be spread over two lines.
    let said = |line: &Line| line.comment.trim_start_matches(['/', '!']).trim().to_owned();
    let prose = lines.iter().map(said).collect::<Vec<_>>().join(" ");
    for text in [&prose, &read("README.md"), &read("CONTRIBUTING.md")] {
        // `tests/file.rs::name`, or `tests/file.rs`, `name`
        for citation in text.split("tests/").skip(1) {
            let Some((file, rest)) = citation.split_once(".rs") else {
                continue;
            };
            let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{file}.rs"));
            let tests = fs::read_to_string(tests).unwrap_or_default();
            let name = rest.strip_prefix("::").or(rest.strip_prefix("`, `"));
            let name = name.and_then(|name| words(name).next()).map_or("", |(_, name, _)| name);
            if !name.starts_with("tests") && !tests.contains(&format!("fn {name}")) {
                violations.push(format!("there is no tests/{file}.rs {name}"));
            }
        }
    }
    let words = prose.split(|c: char| !c.is_alphanumeric() && c != '.');
    for word in words.map(|word| word.trim_matches('.')) {
        let numbers = word.strip_prefix('I').and_then(|numbers| numbers.split_once('.'));
        let is_cited = numbers.is_some_and(|(_, number)| number.parse::<u8>().is_ok());
        let definition = format!("// {word} ");
        if is_cited && !lines.iter().any(|line| line.comment.starts_with(&definition)) {
            violations.push(format!("nothing defines {word}"));
        }
    }
    report(violations);
}

#[test]
fn the_tour_has_ten_stops_and_readme_knows_where_to_look() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let code: String = lines.iter().map(|line| line.code.trim().to_owned() + " ").collect();
    let stops = code.split("tour!(").skip(1);
    let stops = stops.filter_map(|stop| stop.trim_start().split(',').next()?.parse::<u32>().ok());
    let mut stops: Vec<_> = stops.collect();
    stops.sort();
    assert_eq!(stops, (1..=10).collect::<Vec<_>>());
    // A question's row: | where does a future live? | `new_task` |
    let readme = read("README.md");
    let names: Vec<_> =
        readme.lines().filter_map(|line| line.split_once("? | `")?.1.strip_suffix("` |")).collect();
    assert_eq!(names.len(), 10);
    for name in names {
        let is_defined = words(&code).any(|(before, word, _)| {
            word == name && (before.ends_with("fn") || before.ends_with("struct"))
        });
        assert!(is_defined, "README sends its readers to `{name}`");
    }
}

#[test]
fn no_line_is_longer_than_a_hundred_columns() {
    let source = read("src/lib.rs");
    let long = source.lines().zip(1..).filter(|(line, _)| line.chars().count() > 100);
    report(long.map(|(_, number)| format!("line {number}")).collect());
}

#[test]
fn nothing_is_left_to_do() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    for path in ["src/lib.rs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"] {
        let text = read(path);
        let mut lines = text.lines().zip(1..);
        let found = lines.find(|(line, _)| marks.iter().any(|mark| line.contains(mark)));
        assert_eq!(found, None, "{path}");
    }
}

#[test]
fn readme_states_the_right_numbers() {
    let (readme, manifest, source) = (read("README.md"), read("Cargo.toml"), read("src/lib.rs"));
    let msrv = manifest.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(readme.contains(&format!("Rust {msrv} or newer")), "README does not say {msrv}");
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    let dependencies = dependencies.lines().take_while(|line| !line.starts_with('['));
    let always = dependencies.filter(|line| line.contains(" = ") && !line.contains("optional"));
    assert_eq!(always.count(), number_before(&readme, " dependencies, and `rustix` on Unix"));
    let (lines, stated) = (source.lines().count(), number_before(&readme, " lines"));
    assert!(stated.abs_diff(lines) * 10 <= lines, "README says {stated} lines, it is {lines}");
}

#[test]
fn numbers_that_are_printed_and_not_judged() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let mut functions = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = &line.code[..line.code.len() - line.code.trim_start().len()];
        let name = words(&line.code).find(|(before, ..)| before.ends_with("fn"));
        let is_end = |line: &Line| line.code.strip_prefix(indent) == Some("}");
        if let (Some((_, name, _)), Some(len)) = (name, lines[at..].iter().position(is_end)) {
            let is_declaration = line.code.ends_with([';', '}']);
            functions.push((if is_declaration { 1 } else { len + 1 }, name));
        }
    }
    functions.sort();
    let percent = |kind: &dyn Fn(&Line) -> bool| {
        100 * lines.iter().filter(|line| kind(line)).count() / lines.len()
    };
    let is_code = |line: &Line| !line.code.trim().is_empty();
    let is_doc = |line: &Line| line.comment.starts_with("///") || line.comment.starts_with("//!");
    let is_comment = |line: &Line| !is_code(line) && !is_doc(line) && !line.comment.is_empty();
    let (code, docs, comments) = (percent(&is_code), percent(&is_doc), percent(&is_comment));
    println!("{} lines: {code} % code, {docs} % docs, {comments} % other comments", lines.len());
    let (count, median) = (functions.len(), functions[functions.len() / 2].0);
    println!("{count} functions, median {median} lines; the longest:");
    functions.iter().rev().take(5).for_each(|(len, name)| println!("{len:4} {name}"));
}
