//! The map as a picture: an SVG of cells, each as many bytes as the others.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nbd_engine::net::folder_of;

use super::names::{ground, name};
use crate::exit::Failure;
use crate::output::{printable, quoted};
use crate::{output, path_error};

/// Cells of a row, and rows at most.
const COLUMNS: u64 = 128;
const ROWS: u64 = 64;

/// Width and height of a cell, with the gap behind it.
const SIDE: u64 = 8;

/// Where the cells begin: offsets are to their left, and a title above.
const LEFT: u64 = 150;
const TOP: u64 = 60;

/// Types that have a colour and a line in the legend of their own: further ones share the last.
const TYPES: usize = 8;
/// Types that are counted at most: those beyond the colours share the last one.
const MAX_TYPES: usize = 1024;

/// Colours of the types that stand out, in the order of their numbers, and of the one that is the ground.
const COLOURS: [&str; TYPES] =
    ["#1f5fbf", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be185d", "#4b5563"];
const GROUND: &str = "#e5e7eb";

/// The bytes of each type in a cell.
type Shares = BTreeMap<u64, u64>;

/// Draws the runs of a range, which have a type each.
pub(super) fn draw(
    server: &str,
    context: &str,
    range: Range<u64>,
    runs: impl Iterator<Item = Result<(Range<u64>, u64), Failure>>,
) -> Result<String, Failure> {
    let grid = Grid::over(&range);
    let mut cells = vec![Shares::new(); grid.cells as usize];
    let mut totals = Shares::new();
    for run in runs {
        let (run, status) = run?;
        *totals.entry(status).or_default() += run.end - run.start;
        for (index, length) in grid.parts(run) {
            *cells[index].entry(status).or_default() += length;
        }
        if totals.len() > MAX_TYPES {
            return Err(Failure::failed(format!(
                "{server} reports more than {MAX_TYPES} types of '{context}', too many for a picture: leave out --svg"
            )));
        }
    }
    // What is written, or dirty, is drawn over what is not.
    let ground = ground(context);
    let types: Vec<u64> = totals.keys().copied().filter(|status| *status != ground).collect();
    let colour = |status: u64| match types.iter().position(|known| *known == status) {
        Some(index) => COLOURS[index.min(TYPES - 1)],
        None => GROUND,
    };
    let mut svg = String::new();
    let rows = grid.cells.div_ceil(COLUMNS);
    let lines = totals.len().min(TYPES + 1) as u64;
    let (width, height) = (LEFT + COLUMNS * SIDE + 20, TOP + rows * SIDE + 30 + 20 * lines);
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _a_string_takes_everything = svg.write_fmt(text);
    };
    add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"10\" y=\"44\">{}, {} bytes from {}; a cell is {} bytes</text>\n",
        escape(server),
        escape(context),
        range.end - range.start,
        range.start,
        grid.cell,
    ));
    for row in (0..rows).step_by(8) {
        let offset = range.start + row * COLUMNS * grid.cell;
        let y = TOP + row * SIDE + 10;
        let x = LEFT - 8;
        add(format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{offset}</text>\n"));
    }
    for (row, shares) in (0..).zip(cells.chunks(COLUMNS as usize)) {
        let y = TOP + row * SIDE;
        let width = shares.len() as u64 * SIDE - 1;
        add(format_args!(
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"7\" fill=\"{GROUND}\"/>\n"
        ));
        let inks = Vec::from_iter(shares.iter().map(|shares| ink(shares, ground)));
        let mut column = 0;
        // Cells alike that follow each other are one rectangle, so that a picture of little is small.
        for alike in inks.chunk_by(|one, next| one == next) {
            let (x, count) = (LEFT + column * SIDE, alike.len() as u64);
            column += count;
            let Some(Some((status, percent))) = alike.first() else { continue };
            add(format_args!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"7\" fill=\"{}\" opacity=\"{}.{:02}\"/>\n",
                count * SIDE - 1,
                colour(*status),
                percent / 100,
                percent % 100,
            ));
        }
    }
    // The gaps between cells of a row.
    let gaps = (1..COLUMNS.min(grid.cells))
        .map(|column| format!("M{} {TOP}v{}", LEFT + column * SIDE - 1, rows * SIDE));
    add(format_args!(
        "<path transform=\"translate(.5)\" stroke=\"#ffffff\" d=\"{}\"/>\n",
        gaps.collect::<String>()
    ));
    for (line, (status, length)) in (0..lines).zip(&totals) {
        let y = TOP + rows * SIDE + 20 + 20 * line;
        let meaning = name(context, *status).unwrap_or_else(|| format!("type {status}").into());
        let percent = 100.0 * *length as f64 / (range.end - range.start) as f64;
        add(format_args!(
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{}\">{}: {length} bytes, {percent:.1} %</text>\n",
            colour(*status),
            LEFT + 20,
            y + 11,
            escape(&meaning),
        ));
    }
    add(format_args!("</svg>\n"));
    Ok(svg)
}

/// The type that a cell shows, and how much of its colour in hundredths; nothing where the ground is all.
fn ink(shares: &Shares, ground: u64) -> Option<(u64, u64)> {
    let whole: u64 = shares.values().sum();
    let shown = shares.iter().filter(|(status, _)| **status != ground).max_by_key(|part| part.1);
    let (status, length) = shown?;
    // Some of it is to be seen, however little it is.
    let opacity = 0.3 + 0.7 * (*length as f64 / whole as f64);
    Some((*status, (opacity * 100.0).round() as u64))
}

/// Writes the picture to that path: to standard output for `-`, or any other name of it. A file is replaced, by all of it
/// or not at all; what is at the end of a link, a device or a pipe is written in place.
pub(super) fn save(picture: &str, path: &Path) -> Result<(), Failure> {
    if path == Path::new("-") || is_standard_output(path) {
        return output::write(|out| Ok(out.write_all(picture.as_bytes())?));
    }
    let saved = match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => fs::write(path, picture),
        _ => replace(path, picture),
    };
    saved.map_err(|error| {
        let (path, error) = (quoted(path.as_os_str()), path_error::why(&error));
        Failure::failed(format!("cannot write {path}: {error}"))
    })
}

/// Whether a path such as `/dev/stdout` leads to what standard output is.
fn is_standard_output(path: &Path) -> bool {
    let Ok(at_path) = fs::metadata(path) else { return false };
    let own = rustix::fs::fstat(io::stdout());
    own.is_ok_and(|own| (own.st_dev, own.st_ino) == (at_path.dev(), at_path.ino()))
}

/// Puts a new file in the place of the one that may be there.
fn replace(path: &Path, picture: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
    file.write_all(picture.as_bytes())?;
    // For others as well, which files for the moment are not.
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::fchmod(file.as_file(), mode)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// How a range is divided.
struct Grid {
    start: u64,
    /// Bytes of a cell; the last one may have fewer.
    cell: u64,
    cells: u64,
}

impl Grid {
    fn over(range: &Range<u64>) -> Self {
        let length = range.end - range.start;
        // Powers of two look familiar.
        let cell = length.div_ceil(COLUMNS * ROWS).next_power_of_two().max(1);
        Self { start: range.start, cell, cells: length.div_ceil(cell) }
    }

    /// The cells that a part of the range touches, and how many bytes of each.
    fn parts(&self, part: Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (start, cell) = (part.start - self.start, self.cell);
        let end = part.end - self.start;
        (start / cell..end.div_ceil(cell)).map(move |index| {
            let length = end.min((index + 1) * cell) - start.max(index * cell);
            (index as usize, length)
        })
    }
}

/// A text between tags.
fn escape(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_in_one_cell() {
        for (range, parts) in [
            (0..0, vec![]),
            (0..10, vec![0..3, 3..10]),
            (5..1_000_000, vec![5..6, 6..300_000, 300_000..1_000_000]),
            (0..i64::MAX as u64, vec![0..1 << 62, 1 << 62..i64::MAX as u64]),
        ] {
            let grid = Grid::over(&range);
            assert!(grid.cells <= COLUMNS * ROWS);
            let mut filled = vec![0; grid.cells as usize];
            for part in parts {
                for (index, length) in grid.parts(part) {
                    filled[index] += length;
                }
            }
            assert!(filled.iter().all(|length| *length <= grid.cell));
            assert_eq!(filled.iter().sum::<u64>(), range.end - range.start);
        }
    }

    /// Whatever the runs are, the rectangles cover the cells that have something to show, each once, and the file is as
    /// small as what changes along the rows.
    #[test]
    fn a_picture_is_as_small_as_what_changes_in_it() {
        const MIB: u64 = 1 << 20;
        nbd_testkit::cases(50, |random| {
            // Each MiB is a cell.
            let end = COLUMNS * ROWS * MIB;
            let count = random.below(20);
            let bounds = (0..count).map(|_| random.below(COLUMNS * ROWS) * MIB);
            let mut bounds = Vec::from_iter(bounds);
            bounds.extend([0, end]);
            bounds.sort_unstable();
            bounds.dedup();
            let runs =
                bounds.windows(2).map(|pair| pair[0]..pair[1]).zip([3, 0].into_iter().cycle());
            let runs = Vec::from_iter(runs);
            let data =
                runs.iter().filter(|run| run.1 == 0).map(|run| (run.0.end - run.0.start) / MIB);
            let given = runs.iter().cloned().map(Ok);
            let svg = draw("", "base:allocation", 0..end, given).unwrap();
            let widths = svg.lines().filter(|line| line.contains("opacity=\"1.00\"")).map(|line| {
                let (_, rest) = line.split_once("width=\"").unwrap();
                rest.split_once('"').unwrap().0.parse::<u64>().unwrap()
            });
            assert_eq!(widths.map(|width| (width + 1) / SIDE).sum::<u64>(), data.sum::<u64>());
            // A row has what each change of it needs, and one rectangle more.
            let rows = svg.lines().filter(|line| line.starts_with("<rect x")).count() as u64;
            assert!(rows <= 3 * ROWS + runs.len() as u64, "{rows}");
        });
    }

    #[test]
    fn little_data_in_a_large_hole_is_seen_and_texts_are_no_markup() {
        let data = 1 << 40..(1 << 40) + 512;
        let runs = [(0..data.start, 3), (data.clone(), 0), (data.end..1 << 41, 3)];
        let svg = draw("<a&b>", "base:allocation", 0..1 << 41, runs.into_iter().map(Ok)).unwrap();
        assert_eq!(svg.matches("opacity").count(), 1);
        assert!(svg.contains("data: 512 bytes") && svg.contains("&lt;a&amp;b&gt;"), "{svg}");
    }
}
