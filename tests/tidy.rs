//! The prose is true: what README and the comments of `src/lib.rs` state as facts is checked here. Only what rots is checked,
//! never taste; a few numbers about the file are printed (`cargo test --test tidy -- --nocapture`).

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// A line of source: what it does, with empty strings and characters, and what it says.
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
        let raw = line.code.trim_end_matches('#').ends_with('r');
        let hashes = line.code.len() - line.code.trim_end_matches('#').len();
        let mut len = char.len_utf8();
        match char {
            '\n' => lines.push(Line::default()),
            '/' if rest.starts_with("//") => {
                len = rest.find('\n').unwrap_or(rest.len());
                line.comment = rest[..len].to_owned();
            }
            '"' => {
                let end = format!("\"{}", "#".repeat(if raw { hashes } else { 0 }));
                while !rest[len..].starts_with(&end) {
                    let escape = !raw && rest[len..].starts_with('\\');
                    let skipped = rest[len..].chars().take(1 + escape as usize);
                    len += skipped.map(char::len_utf8).sum::<usize>();
                }
                len += end.len();
                line.code.push_str("\"\"");
                let more = rest[..len].matches('\n').map(|_| Line::default());
                lines.extend(more);
            }
            // A character, not a lifetime.
            '\'' if rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'') => {
                let start = if rest[1..].starts_with('\\') { 3 } else { 2 };
                len = start + rest[start..].find('\'').unwrap() + 1;
                line.code.push_str("' '");
            }
            _ => line.code.push(char),
        }
        rest = &rest[len..];
    }
    lines
}

/// The words of a line of code, with what stands before and after.
fn words(code: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let starts = code.char_indices().filter(move |&(at, c)| {
        is_part(c) && !code[..at].ends_with(is_part) && !c.is_ascii_digit()
    });
    starts.map(move |(at, _)| {
        let end = code[at..]
            .find(|c| !is_part(c))
            .map_or(code.len(), |len| at + len);
        (
            code[..at].trim_end(),
            &code[at..end],
            code[end..].trim_start(),
        )
    })
}

/// The number in front of `what`, as in "5,400 lines".
fn number_before(text: &str, what: &str) -> usize {
    let (before, _) = text
        .split_once(what)
        .unwrap_or_else(|| panic!("nothing says how many{what}"));
    let digits = |c: char| c.is_ascii_digit() || c == ',';
    let start = before.trim_end_matches(digits).len();
    before[start..]
        .replace(',', "")
        .parse()
        .unwrap_or_else(|_| panic!("how many{what}?"))
}

fn section_number(text: &str) -> Option<usize> {
    let digits = text.strip_prefix('§')?;
    digits[..digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len())]
        .parse()
        .ok()
}

/// The sections of a head line: `§1`, `§2-§5`.
fn section_list(text: &str) -> Vec<usize> {
    let ends = |range: &str| {
        range
            .split('-')
            .filter_map(section_number)
            .collect::<Vec<_>>()
    };
    let ranges = text
        .split_whitespace()
        .map(ends)
        .filter(|ends| !ends.is_empty());
    ranges
        .flat_map(|ends| ends[0]..=*ends.last().unwrap())
        .collect()
}

struct Section {
    number: usize,
    banner: String,
    lines: Range<usize>,
    /// From its head: `None` is "all".
    uses: Option<Vec<usize>>,
    used_by: Option<Vec<usize>>,
}

fn sections(lines: &[Line]) -> Vec<Section> {
    let heads = (0..lines.len()).filter(|&at| lines[at].comment.starts_with("// §"));
    let mut sections = Vec::new();
    for at in heads {
        let bar = |line: &Line| line.comment.starts_with("// ====");
        assert!(
            bar(&lines[at - 1]) && bar(&lines[at + 1]),
            "line {}: no banner",
            at + 1
        );
        let head = lines[at + 1..].iter().take(8).map(|line| &line.comment[..]);
        let head = head
            .clone()
            .find(|text| text.starts_with("// uses"))
            .unwrap_or_default();
        let mut facts = head
            .split('·')
            .map(|fact| fact.trim_start_matches("//").trim());
        let list = |fact: Option<&str>| {
            let fact = fact.unwrap_or_default();
            (!fact.ends_with("all")).then(|| section_list(fact))
        };
        let (number, title) = lines[at].comment[3..].split_once("  ").expect("two spaces");
        sections.push(Section {
            number: section_number(number).unwrap(),
            title: title.split(':').next().unwrap().to_owned(),
            lines: at..lines.len(),
            uses: list(facts.next()),
            used_by: list(facts.next()),
        });
    }
    for at in 1..sections.len() {
        sections[at - 1].lines.end = sections[at].lines.start;
    }
    sections
}

/// What a line defines at the top level, where `macros` says that it is inside of a macro whose contents are at the top level.
fn definition(code: &str, in_macro: bool) -> Option<(&str, &str)> {
    let indent = code.len() - code.trim_start().len();
    if indent != if in_macro { 4 } else { 0 } {
        return None;
    }
    const KINDS: [&str; 9] = [
        "fn",
        "struct",
        "enum",
        "trait",
        "static",
        "const",
        "type",
        "mod",
        "macro_rules",
    ];
    let mut words = words(code).map(|(_, word, _)| word).peekable();
    while let Some(word) = words.next() {
        let next = *words.peek()?;
        if KINDS.contains(&word) && !KINDS.contains(&next) {
            return (next != "_").then_some((word, next));
        }
        if !["pub", "crate", "async", "const", "unsafe"].contains(&word) {
            return None;
        }
    }
    None
}

/// Everything defined at the top level: its kind and the line.
fn definitions(lines: &[Line]) -> BTreeMap<&str, (&str, usize)> {
    let mut found = BTreeMap::new();
    let mut in_macro = false;
    for (at, line) in lines.iter().enumerate() {
        in_macro |= ["thread_local! {", "pin_project! {"].contains(&&line.code[..]);
        in_macro &= line.code != "}";
        if let Some((kind, name)) = definition(&line.code, in_macro) {
            found.entry(name).or_insert((kind, at));
        }
    }
    found
}

/// Fails with all violations at once.
fn report(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn banners_are_consecutive_and_the_header_lists_them() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let sections = sections(&lines);
    let numbers: Vec<_> = sections.iter().map(|section| section.number).collect();
    assert_eq!(numbers, (1..=sections.len()).collect::<Vec<_>>());
    let titles = sections.iter().map(|section| &section.banner[..]);
    let header = source.lines().filter_map(|line| line.strip_prefix("//! - "));
    let listed = header.filter(|item| item.starts_with('§'));
    assert_eq!(titles.collect::<Vec<_>>(), listed.collect::<Vec<_>>());
}

#[test]
fn a_section_uses_only_what_its_head_says_and_nothing_from_below() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let sections = sections(&lines);
    let definitions = definitions(&lines);
    let section_of = |at: usize| sections.iter().find(|section| section.lines.contains(&at));
    let mut violations = Vec::new();
    for section in &sections {
        for at in section.lines.clone() {
            for (before, word, after) in words(&lines[at].code) {
                let Some(&(kind, place)) = definitions.get(word) else {
                    continue;
                };
                let Some(home) = section_of(place).filter(|home| home.number != section.number)
                else {
                    continue;
                };
                let is_path = before.ends_with("::") && !before.ends_with("crate::");
                let is_member = before.ends_with('.') && !before.ends_with("..");
                let is_other = match kind {
                    "fn" => !(after.starts_with('(') || after.starts_with("::<")),
                    "macro_rules" => !after.starts_with('!'),
                    "mod" => !after.starts_with("::"),
                    _ => false,
                };
                if is_path || is_member || is_other || before.ends_with("fn") {
                    continue;
                }
                let (here, there) = (section.number, home.number);
                let allowed = section
                    .uses
                    .as_ref()
                    .is_none_or(|uses| uses.contains(&there));
                let expected = home
                    .used_by
                    .as_ref()
                    .is_none_or(|users| users.contains(&here));
                let place = format!("line {}: §{here} uses `{word}` of §{there}", at + 1);
                if there > here {
                    violations.push(format!("{place}, which is below"));
                } else if !allowed || !expected {
                    let which = if allowed { there } else { here };
                    violations.push(format!("{place}; the head of §{which} does not say so"));
                }
            }
        }
    }
    report(&violations);
}

#[test]
fn each_ordering_says_why() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let silent = |at: &usize| {
        !lines[at.saturating_sub(6)..=*at]
            .iter()
            .any(|l| l.comment.contains("Ordering:"))
    };
    let uses = (0..lines.len()).filter(|&at| lines[at].code.contains("Ordering::"));
    let violations: Vec<_> = uses
        .filter(silent)
        .map(|at| format!("line {}", at + 1))
        .collect();
    report(&violations);
}

#[test]
fn each_unsafe_says_why_it_is_safe_and_readme_knows_how_many() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let is_unsafe = |at: &usize| words(&lines[*at].code).any(|(_, word, _)| word == "unsafe");
    let blocks: Vec<_> = (0..lines.len()).filter(is_unsafe).collect();
    for &at in &blocks {
        let mut above = lines[..at]
            .iter()
            .rev()
            .take_while(|l| l.code.trim().is_empty() && !l.comment.is_empty());
        assert!(
            above.any(|line| line.comment.starts_with("// SAFETY:")),
            "line {}",
            at + 1
        );
    }
    assert_eq!(
        blocks.len(),
        number_before(&read("README.md"), " `unsafe` blocks")
    );
}

#[test]
fn cited_tests_and_invariants_exist() {
    let source = read("src/lib.rs");
    let lines = lines_of(&source);
    let mut violations = Vec::new();
    // Comments as running text: a citation may be spread over two lines.
    let said = |line: &Line| {
        line.comment
            .trim_start_matches(['/', '!'])
            .trim()
            .to_owned()
    };
    let prose = lines.iter().map(said).collect::<Vec<_>>().join(" ");
    for text in [prose.clone(), read("README.md"), read("CONTRIBUTING.md")] {
        for (at, _) in text.match_indices("tests/") {
            let Some((path, rest)) = text[at..].split_once(".rs") else {
                continue;
            };
            if path.contains(|c: char| !c.is_alphanumeric() && !"/_".contains(c)) {
                continue;
            }
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{path}.rs"));
            let tests = fs::read_to_string(file).unwrap_or_default();
            let name = rest.trim_start_matches(['`', ',', ':', ' ', '\n']);
            let cited =
                rest.starts_with("::") || rest.starts_with("`, `") || rest.starts_with("`: `");
            let name = words(name)
                .next()
                .filter(|_| cited)
                .map_or("", |(_, name, _)| name);
            if tests.is_empty() || !tests.contains(&format!("fn {name}")) {
                violations.push(format!("there is no {path}.rs {name}"));
            }
        }
    }
    let is_invariant = |word: &str| {
        let numbers = word.strip_prefix('I').unwrap_or_default().split_once('.');
        numbers.is_some_and(|(section, n)| section.parse::<u8>().is_ok() && n.parse::<u8>().is_ok())
    };
    let cited = prose
        .split(|c: char| !c.is_alphanumeric() && c != '.')
        .map(|word| word.trim_matches('.'));
    for word in cited.filter(|word| is_invariant(word)) {
        if !lines
            .iter()
            .any(|line| line.comment.starts_with(&format!("// {word} ")))
        {
            violations.push(format!("nothing defines {word}"));
        }
    }
    report(&violations);
}

#[test]
fn the_tour_stops_ten_times_and_readme_finds_its_way() {
    let source = read("src/lib.rs");
    let code: String = lines_of(&source)
        .iter()
        .flat_map(|line| [line.code.trim(), " "])
        .collect::<String>();
    let stop = |(at, call): (usize, &str)| {
        let number = code[at + call.len()..]
            .trim_start()
            .split(',')
            .next()
            .unwrap();
        number.parse::<u32>().ok()
    };
    let mut stops: Vec<_> = code.match_indices("tour!(").filter_map(stop).collect();
    stops.sort();
    assert_eq!(stops, (1..=10).collect::<Vec<_>>());
    // The table of questions: | 1 | where does a future live? | `new_task` |
    let readme = read("README.md");
    let rows = readme
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("? |"));
    for row in rows.clone() {
        let name = row.rsplit('`').nth(1).unwrap();
        let defined = ["fn", "struct"].iter().any(|kind| {
            let at = code.find(&format!("{kind} {name}"));
            at.is_some_and(|at| {
                !code[at..]
                    .replacen(&format!("{kind} {name}"), "", 1)
                    .starts_with('_')
            })
        });
        assert!(defined, "README sends its readers to `{name}`");
    }
    assert_eq!(rows.count(), 10);
}

#[test]
fn nothing_is_left_to_do() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    for path in ["src/lib.rs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"] {
        for (at, line) in read(path).lines().enumerate() {
            assert!(
                !marks.iter().any(|mark| line.contains(mark)),
                "{path}:{}",
                at + 1
            );
        }
    }
}

#[test]
fn readme_states_the_right_numbers() {
    let (readme, manifest, source) = (read("README.md"), read("Cargo.toml"), read("src/lib.rs"));
    let msrv = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap();
    let msrv = format!("Rust {}", msrv.trim_matches('"'));
    assert!(
        readme.contains(&format!("{msrv} ")),
        "README does not mention {msrv}"
    );
    let stated = number_before(&readme, " lines");
    let lines = source.lines().count();
    assert!(
        stated.abs_diff(lines) * 10 <= lines,
        "README says {stated} lines, there are {lines}"
    );

    // Printed, not judged.
    let parts = lines_of(&source);
    let mut functions = Vec::new();
    for (start, line) in parts.iter().enumerate() {
        let indent = &line.code[..line.code.len() - line.code.trim_start().len()];
        let name = words(&line.code)
            .find(|(before, ..)| before.ends_with("fn"))
            .map(|(_, name, _)| name);
        let end = parts[start..]
            .iter()
            .position(|line| line.code == format!("{indent}}}"));
        if let (Some(name), Some(len), false) = (name, end, line.code.ends_with([';', '}'])) {
            functions.push((len + 1, name));
        }
    }
    functions.sort();
    let share =
        |kind: fn(&Line) -> bool| 100 * parts.iter().filter(|l| kind(l)).count() / parts.len();
    let (docs, comments) = (
        share(|l| l.comment.starts_with("///") || l.comment.starts_with("//!")),
        share(|l| l.code.trim().is_empty() && l.comment.starts_with("//")),
    );
    println!(
        "{lines} lines, {docs} % docs, {} % other comments",
        comments - docs
    );
    println!(
        "{} functions, median {} lines",
        functions.len(),
        functions[functions.len() / 2].0
    );
    println!("the longest: {:?}", &functions[functions.len() - 5..]);
}
