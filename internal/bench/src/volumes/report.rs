//! The tables of `volume`.

use serde_json::{Value, json as value};

use super::arguments::VolumePlan;
use super::run::Standing;
use crate::table::table;

/// Tables for people.
pub fn text(plan: &VolumePlan, standing: &Standing) -> String {
    let figures = standing.figures.iter().map(|figure| {
        let ratio = figure.ours / figure.other;
        let verdict = match figure.bar {
            None => "-".to_owned(),
            Some(bar) if ratio >= bar => format!(">= {bar}"),
            Some(bar) => format!("below {bar}"),
        };
        vec![
            figure.what.to_owned(),
            figure.place.name().to_owned(),
            format!("{}k", figure.block_size >> 10),
            format!("{:.0} {}", figure.other, figure.unit),
            format!("{:.0} {}", figure.ours, figure.unit),
            format!("{ratio:.2}"),
            verdict,
        ]
    });
    let mut rows: Vec<Vec<String>> = figures.collect();
    // By what is measured, so that block sizes stand below each other.
    rows.sort_by(|a, b| (&a[1], &a[0]).cmp(&(&b[1], &b[0])));
    let heading = ["", "store", "block", "SlateDB, or file", "volume", "ratio", "bar"];
    let accounts = standing.accounts.iter().zip(&standing.peaks);
    let accounts = accounts.map(|((place, block_size, account), (.., peak))| {
        vec![
            place.name().to_owned(),
            format!("{}k", block_size >> 10),
            format!("{:.0}", account.puts),
            format!("{:.2}", account.written),
            format!("{:.2}", account.stored),
            format!("{:.0}", account.gets),
            format!("{:.2}", account.fetched),
            format!("{} MiB", peak >> 20),
        ]
    });
    let accounts: Vec<Vec<String>> = accounts.collect();
    let columns = ["store", "block", "PUT/GiB", "sent", "stored", "GET/GiB", "fetched", "memory"];
    format!(
        "Volumes of {} MiB; runs of {:?}.\n\n{}\nAll of it written by 4 KiB in no order, and read in sequence:\n\n{}",
        plan.size >> 20,
        plan.duration,
        table(&heading, &rows),
        table(&columns, &accounts)
    )
}

/// The same for programs.
pub fn json(plan: &VolumePlan, standing: &Standing) -> Value {
    let figures = standing.figures.iter().map(|figure| {
        value!({
            "what": figure.what,
            "store": figure.place.name(),
            "block-size": figure.block_size,
            "unit": figure.unit,
            "other": figure.other,
            "ours": figure.ours,
            "bar": figure.bar,
        })
    });
    let accounts = standing.accounts.iter().zip(&standing.peaks);
    let accounts = accounts.map(|((place, block_size, account), (.., peak))| {
        value!({
            "store": place.name(),
            "block-size": block_size,
            "puts-per-gib": account.puts,
            "sent": account.written,
            "stored": account.stored,
            "gets-per-gib": account.gets,
            "fetched": account.fetched,
            "peak-memory": peak,
        })
    });
    value!({
        "size": plan.size,
        "seconds": plan.duration.as_secs_f64(),
        "figures": Vec::from_iter(figures),
        "accounts": Vec::from_iter(accounts),
    })
}
