//! The comparison as a picture: for each workload the rate and the CPU of a request, server by server.

use std::fmt::Write as _;

use crate::compare::{Plan, Record, Sample};
use crate::report::machine;

/// Widths in pixels: names, the longest bar, the figure behind it.
const NAMES: u32 = 150;
const BAR: u32 = 230;
const FIGURE: u32 = 90;
const PANEL: u32 = BAR + FIGURE;

/// Heights of a bar's line, and of a workload's heading.
const LINE: u32 = 20;
const HEADING: u32 = 44;

const OURS: &str = "#1f5fbf";
const OTHERS: &str = "#9ca3af";

/// A figure that is drawn, from the left to the right.
struct Panel {
    title: &'static str,
    figure: fn(&Sample) -> f64,
    digits: usize,
}

const PANELS: [Panel; 2] = [
    Panel { title: "requests/s (more is better)", figure: |sample| sample.rate, digits: 0 },
    Panel {
        title: "server CPU, us/request (less is better)",
        figure: |sample| sample.server_cpu,
        digits: 2,
    },
];

/// Draws the medians, with the machine and the versions below.
pub fn svg(plan: &Plan, records: &[Record]) -> String {
    let ran: Vec<&Record> = records
        .iter()
        .filter(|record| record.samples.iter().any(|samples| !samples.is_empty()))
        .collect();
    let rows = ran.len() as u32;
    let notes = notes(plan, &ran);
    let chart = plan.workloads.len() as u32 * (HEADING + rows * LINE + 10);
    let (width, height) = (NAMES + 2 * PANEL + 20, chart + 20 * notes.len() as u32 + 30);
    let mut out = String::new();
    add(
        &mut out,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        ),
    );
    let mut top = 0;
    for (index, workload) in plan.workloads.iter().enumerate() {
        add(
            &mut out,
            format_args!(
                "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{}</text>\n",
                top + 20,
                workload.title()
            ),
        );
        for (panel, left) in PANELS.iter().zip([NAMES, NAMES + PANEL]) {
            add(
                &mut out,
                format_args!("<text x=\"{left}\" y=\"{}\">{}</text>\n", top + 38, panel.title),
            );
            let figures: Vec<_> =
                ran.iter().map(|record| record.median(index, panel.figure)).collect();
            let longest = figures.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
            for ((record, figure), line) in ran.iter().zip(figures).zip(0..) {
                bar(
                    &mut out,
                    (left, top + HEADING + line * LINE),
                    record,
                    figure,
                    longest,
                    panel.digits,
                );
            }
        }
        for (record, line) in ran.iter().zip(0..) {
            let y = top + HEADING + line * LINE + 13;
            let name = &record.server.name;
            let x = NAMES - 8;
            add(
                &mut out,
                format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{name}</text>\n"),
            );
        }
        top += HEADING + rows * LINE + 10;
    }
    for (note, line) in notes.iter().zip(1..) {
        let y = top + 20 * line;
        let note = note.replace('&', "&amp;").replace('<', "&lt;");
        add(&mut out, format_args!("<text x=\"10\" y=\"{y}\" fill=\"#4b5563\">{note}</text>\n"));
    }
    add(&mut out, format_args!("</svg>\n"));
    out
}

fn bar(
    out: &mut String,
    (left, top): (u32, u32),
    record: &Record,
    figure: Option<f64>,
    longest: f64,
    digits: usize,
) {
    let Some(figure) = figure else {
        add(out, format_args!("<text x=\"{left}\" y=\"{}\">-</text>\n", top + 13));
        return;
    };
    let length = (figure / longest * f64::from(BAR)).max(1.0);
    let colour = if record.server.name.starts_with("nbd-") { OURS } else { OTHERS };
    add(
        out,
        format_args!(
            "<rect x=\"{left}\" y=\"{top}\" width=\"{length:.1}\" height=\"15\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{figure:.digits$}</text>\n",
            f64::from(left) + length + 6.0,
            top + 13,
        ),
    );
}

/// What the figures can't be read without.
fn notes(plan: &Plan, ran: &[&Record]) -> Vec<String> {
    let (seconds, rounds) = (plan.duration.as_secs_f64(), plan.rounds);
    let machine: Vec<_> = machine().iter().map(|(name, value)| format!("{name} {value}")).collect();
    let mut versions: Vec<&str> = ran.iter().map(|record| record.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    vec![
        format!(
            "Medians of {rounds} rounds of {seconds} s over a Unix socket; {}",
            machine.join(", ")
        ),
        versions.join("; "),
    ]
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _a_string_takes_everything = out.write_fmt(text);
}
