//! README's share of the numbers, and the pictures, from what RESULTS.md and GROWTH.md say: nothing
//! is measured for them.

use crate::driver::Result;
use crate::row::{PEERS, Unit};
use crate::table::show;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The rows that README shows, and in which words.
const CHOSEN: &[(&str, &str)] = &[
    ("spawn_join_worker", "a task spawns another and awaits it"),
    ("spawn_100k_outside", "100,000 tasks are spawned, then awaited"),
    ("yield_1000x1000", "one of 1,000 tasks yields"),
    ("pingpong_64pairs", "64 pairs of tasks send messages to and fro"),
    ("timer_create_drop", "a timer is set and dropped"),
    ("timer_late_1k", "how late a timer fires"),
    ("unblock_100k", "a closure runs on the blocking pool"),
    ("tcp_echo_64", "TCP echo, 64 connections"),
    ("http_wrk_64", "an HTTP request, 64 connections"),
    ("fs_small", "a small file is opened and read"),
    ("fs_write_back", "a megabyte is written and read back"),
    ("mem_task", "the memory of a pending task"),
];

/// Who has a bar and a line, and in this order a colour of each theme.
fn shown() -> impl Iterator<Item = &'static str> {
    ["ours"].into_iter().chain(PEERS.iter().copied())
}

struct Theme {
    name: &'static str,
    paper: RGBColor,
    ink: RGBColor,
    faint: RGBColor,
    colors: [RGBColor; 4],
}

const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        paper: RGBColor(255, 255, 255),
        ink: RGBColor(31, 35, 40),
        faint: RGBColor(209, 217, 224),
        colors: [
            RGBColor(9, 105, 218),
            RGBColor(217, 119, 6),
            RGBColor(45, 150, 100),
            RGBColor(140, 149, 159),
        ],
    },
    Theme {
        name: "dark",
        paper: RGBColor(13, 17, 23),
        ink: RGBColor(230, 237, 243),
        faint: RGBColor(61, 68, 77),
        colors: [
            RGBColor(88, 166, 255),
            RGBColor(240, 160, 60),
            RGBColor(80, 190, 130),
            RGBColor(125, 133, 144),
        ],
    },
];

/// Writes README's table and all pictures.
pub fn update() -> Result<()> {
    speed()?;
    growth()
}

fn benches() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A picture in both themes, for a page in this folder or, with `benches/`, for README.
pub fn link(folder: &str, name: &str, what: &str) -> String {
    let path = format!("{folder}pictures/{name}");
    format!(
        "<picture><source media=\"(prefers-color-scheme: dark)\" srcset=\"{path}-dark.svg\">\
        <img alt=\"{what}\" src=\"{path}-light.svg\"></picture>\n"
    )
}

fn draw(
    name: &str,
    size: (u32, u32),
    content: impl Fn(&Theme, &Area<'_>) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(benches().join("pictures"))?;
    for theme in &THEMES {
        let path = benches().join(format!("pictures/{name}-{}.svg", theme.name));
        let area = SVGBackend::new(&path, size).into_drawing_area();
        area.fill(&theme.paper)?;
        content(theme, &area)?;
        area.present()?;
    }
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn text<'a>(size: u32, color: &'a RGBColor, at: HPos) -> TextStyle<'a> {
    ("sans-serif", size).into_font().color(color).pos(Pos::new(at, VPos::Center))
}

/// The names of the runtimes in their colours, from here to the right.
fn legend(theme: &Theme, area: &Area<'_>, (mut x, y): (i32, i32)) -> Result<()> {
    for (name, color) in shown().zip(&theme.colors) {
        let name = if name == "smol2" { "smol 2" } else { name };
        area.draw(&Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()))?;
        area.draw(&Text::new(name, (x + 16, y), text(13, &theme.ink, HPos::Left)))?;
        x += 90;
    }
    Ok(())
}

// ---------- the tables ----------

/// A table of a report, under its heading; the first line holds the names of the columns.
struct Table<'a> {
    heading: &'a str,
    lines: Vec<Vec<&'a str>>,
}

impl<'a> Table<'a> {
    fn cell(&self, line: &[&'a str], column: &str) -> Option<&'a str> {
        let at = self.lines[0].iter().position(|name| *name == column)?;
        line.get(at).copied().filter(|cell| !cell.is_empty())
    }
}

fn tables(report: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for line in report.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            tables.push(Table { heading, lines: Vec::new() });
        } else if let (Some(cells), Some(table)) = (line.strip_prefix('|'), tables.last_mut()) {
            let cells = cells.strip_suffix('|').unwrap_or(cells);
            if !cells.starts_with("---") {
                table.lines.push(cells.split('|').map(str::trim).collect());
            }
        }
    }
    tables.retain(|table| !table.lines.is_empty());
    tables
}

/// What `table::show` has written, as a number again.
fn number(shown: &str) -> Result<f64> {
    let digits = shown.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale = match &shown[digits.len()..] {
        "" | "B" => 1.0,
        "µ" | "kB" => 1e3,
        "m" => 1e6,
        "s" => 1e9,
        unit => return Err(format!("no unit: {unit}").into()),
    };
    Ok(digits.parse::<f64>()? * scale)
}

// ---------- speed ----------

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// Writes README's table and its picture, from RESULTS.md.
pub fn speed() -> Result<()> {
    let report = fs::read_to_string(benches().join("RESULTS.md"))?;
    let tables = tables(&report);
    let mut bars = Vec::new();
    let mut rows = String::from("| | ours | tokio | smol 2 | async-std | ratio | by medians |\n");
    writeln!(rows, "|---|{}", "---:|".repeat(6))?;
    for (name, words) in CHOSEN {
        let mut lines =
            tables.iter().flat_map(|table| table.lines.iter().map(move |line| (table, line)));
        let Some((table, line)) = lines.find(|(table, line)| {
            line[0] == *name && table.lines[0].contains(&"ours") // and not what the rows are
        }) else {
            continue;
        };
        // The minimum, without the median behind it.
        let minimum = |runtime| {
            let cell = table.cell(line, runtime)?;
            Some(cell.split(' ').next().unwrap_or(cell))
        };
        let cells: Vec<_> = shown().map(minimum).collect();
        let numbers: Vec<_> = cells.iter().map(|cell| cell.unwrap_or_default()).collect();
        let ratios = ["ratio", "by medians"];
        let ratios = ratios.map(|column| table.cell(line, column).unwrap_or_default());
        writeln!(rows, "| {words}, `{name}` | {} | {} |", numbers.join(" | "), ratios.join(" | "))?;
        bars.push((*words, cells));
    }
    let height = 60 + ROW * bars.len().div_ceil(2) as i32;
    draw("speed", (820, height as u32), |theme, area| bar_chart(theme, area, &bars))?;

    let header = report.lines().nth(2).ok_or("RESULTS.md does not say when and where")?;
    // Two sentences each, by minima and by medians, as one item.
    let mean = report.lines().filter(|line| line.starts_with("- Geometric mean"));
    let behind = report.lines().filter_map(|line| line.strip_prefix("- Above"));
    let summary: Vec<_> =
        mean.zip(behind).map(|(mean, behind)| format!("{mean} Above{behind}")).collect();
    let what =
        "Bars: the time that ours, tokio, smol 2 and async-std take for the rows of the table";
    let part = format!(
        "{BEGIN}\n{header}\n\n{}\n{rows}\n{}\n{END}",
        link("benches/", "speed", what),
        summary.join("\n")
    );
    let readme = benches().join("../README.md");
    let text = fs::read_to_string(&readme)?;
    let (before, rest) = text.split_once(BEGIN).ok_or("README.md has no place for the table")?;
    let (_, after) = rest.split_once(END).ok_or("README.md has no end of the table")?;
    Ok(fs::write(&readme, format!("{before}{part}{after}"))?)
}

/// Bars that are longer than so many times ours are cut.
const LONGEST: f64 = 4.0;
/// In pixels: the longest bar, its height with the gap below, a row of bars with its heading.
const LENGTH: f64 = 330.0;
const BAR: i32 = 12;
const ROW: i32 = 82;

/// A row for the picture: its words, and what each of those who are shown took.
type Bars<'a> = (&'a str, Vec<Option<&'a str>>);

fn bar_chart(theme: &Theme, area: &Area<'_>, rows: &[Bars<'_>]) -> Result<()> {
    legend(theme, area, (20, 24))?;
    let note = "shorter is better; \u{2223}\u{2223}: cut at four times ours";
    area.draw(&Text::new(note, (800, 24), text(12, &theme.ink, HPos::Right)))?;
    for (i, (words, cells)) in rows.iter().enumerate() {
        let (column, row) = (i / rows.len().div_ceil(2), i % rows.len().div_ceil(2));
        let (x, y) = (20 + 410 * column as i32, 60 + ROW * row as i32);
        area.draw(&Text::new(*words, (x, y), text(13, &theme.ink, HPos::Left)))?;
        let ours = number(cells[0].ok_or("no number of ours")?)?;
        for (bar, (cell, color)) in (1..).zip(cells.iter().zip(&theme.colors)) {
            let Some(cell) = cell else { continue };
            let y = y + BAR * bar;
            let times = number(cell)? / ours;
            let end = x + (LENGTH / LONGEST * times.min(LONGEST)) as i32;
            let rectangle = |from, to, color: &RGBColor| {
                Rectangle::new([(from, y), (to, y + BAR - 3)], color.filled())
            };
            area.draw(&rectangle(x, end, color))?;
            if times > LONGEST {
                area.draw(&rectangle(end - 16, end - 14, &theme.paper))?;
                area.draw(&rectangle(end - 12, end - 10, &theme.paper))?;
            }
            let middle = y + BAR / 2 - 2;
            area.draw(&Text::new(
                spell(cell),
                (end + 5, middle),
                text(11, &theme.ink, HPos::Left),
            ))?;
        }
    }
    Ok(())
}

/// A number of the table, with its unit as it is written elsewhere.
fn spell(shown: &str) -> String {
    let digits = shown.trim_end_matches(|c: char| !c.is_ascii_digit());
    match &shown[digits.len()..] {
        "" => format!("{digits} ns"),
        unit @ ("µ" | "m") => format!("{digits} {unit}s"),
        unit => format!("{digits} {unit}"),
    }
}

// ---------- growth ----------

/// Draws the tables of GROWTH.md, one panel each.
pub fn growth() -> Result<()> {
    let report = fs::read_to_string(benches().join("GROWTH.md"))?;
    let tables = tables(&report);
    let rows = tables.len().div_ceil(2);
    draw("growth", (820, 44 + 240 * rows as u32), |theme, area| {
        let (head, rest) = area.split_vertically(44);
        legend(theme, &head, (20, 24))?;
        let note = "nanoseconds per operation (\u{b5}: micro)";
        head.draw(&Text::new(note, (800, 24), text(12, &theme.ink, HPos::Right)))?;
        let panels = rest.split_evenly((rows, 2));
        panels.iter().zip(&tables).try_for_each(|(area, table)| panel(theme, area, table))
    })
}

fn panel(theme: &Theme, area: &Area<'_>, table: &Table<'_>) -> Result<()> {
    // Between the runtime's name and the verdict.
    let sizes = &table.lines[0][1..table.lines[0].len() - 1];
    let mut lines = Vec::new();
    for (name, color) in shown().zip(&theme.colors) {
        let line = table.lines.iter().find(|line| line[0] == name);
        let Some(line) = line else { continue };
        let costs = line[1..=sizes.len()].iter().map(|cell| number(cell));
        lines.push((color, costs.collect::<Result<Vec<_>>>()?));
    }
    let highest = lines.iter().flat_map(|(_, costs)| costs).fold(0.0, |a: f64, b| a.max(*b));
    // The sizes grow by the same factor from step to step, so that this is a logarithmic scale.
    let steps = 0.0..(sizes.len() - 1) as f64;
    let heading = table.heading.split_once(": ").map_or(table.heading, |(_, words)| words);
    let mut chart = ChartBuilder::on(area)
        .caption(heading, ("sans-serif", 12).into_font().color(&theme.ink))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(22)
        .y_label_area_size(44)
        .build_cartesian_2d(steps, 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(theme.faint)
        .axis_style(theme.faint)
        .label_style(("sans-serif", 11).into_font().color(&theme.ink))
        .x_labels(sizes.len())
        .x_label_formatter(&|step| short(sizes[step.round() as usize]))
        .y_labels(5)
        .y_label_formatter(&|cost| show(*cost, Unit::Nanos))
        .draw()?;
    // Ours last, on top of the others.
    for (color, costs) in lines.iter().rev() {
        let points = (0..).map(f64::from).zip(costs.iter().copied());
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
    }
    Ok(())
}

/// A million is 1M.
fn short(size: &str) -> String {
    match size {
        _ if size.ends_with("000000") => format!("{}M", &size[..size.len() - 6]),
        _ if size.ends_with("000") => format!("{}k", &size[..size.len() - 3]),
        _ => size.to_string(),
    }
}
