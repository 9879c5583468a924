//! A soak from its beginning to its end.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use nbd_testkit::Random;
use nbd_testkit::peers::find;
use nbd_testkit::process::Background;
use nbd_testkit::raw::RawClient;

use super::clients::{Count, fio_behind_a_proxy, fio_on_the_steady_one, reconnecting};
use super::measure::{Sample, Series, Verdict};
use super::site::{Run, Site};
use super::visitors::{KINDS, keep_visiting};
use crate::process::Runtime;

/// Samples of a line of the table.
const SAMPLES_A_LINE: usize = 60;

/// How long a server may take to be as it was once its clients are gone. A client that is silent in a handshake is
/// disconnected, too, but only after a while; that one has gone by itself.
const CALM: Duration = Duration::from_secs(60);

/// What a soak is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `nbd`.
    pub program: PathBuf,
    /// Which runtimes' servers, all of them at the same time.
    pub runtimes: Vec<Runtime>,
    /// How long.
    pub length: Duration,
    /// Decides what visitors do, and when.
    pub seed: u64,
}

/// How a soak has ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What is wrong. Nothing may be.
    pub faults: Vec<String>,
    /// Which servers are flat; without one it was too short to tell.
    pub verdicts: Vec<(Runtime, Option<Verdict>)>,
}

impl Report {
    /// No faults, and nothing that grows.
    pub fn is_good(&self) -> bool {
        let mut verdicts = self.verdicts.iter();
        self.faults.is_empty() && verdicts.all(|(_, verdict)| verdict.is_none_or(|v| v.is_flat))
    }
}

/// Runs it, and prints a table.
///
/// # Errors
/// When it can't begin, for people.
pub fn run(options: &Options, interrupted: &AtomicBool) -> Result<Report, String> {
    if find("fio").is_none() {
        return Err("fio is not here (apt-get install fio)".to_owned());
    }
    let run = Run::new(options.length);
    let mut random = Random::new(options.seed);
    let sites: Vec<Site> = options
        .runtimes
        .iter()
        .map(|&runtime| Site::new(&options.program, runtime).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    // Observers of connections may outlive this.
    let counts: Vec<&'static Count> = sites.iter().map(|_| &*Box::leak(Box::default())).collect();
    let calm: Vec<Sample> = sites.iter().map(|site| warmed_up(&run, site)).collect();
    let mut series = vec![Series::default(); sites.len()];
    let visits: Vec<[u64; KINDS.len()]> = thread::scope(|scope| {
        let run = &run;
        let mut visitors = Vec::new();
        for (site, count) in sites.iter().zip(&counts) {
            let [one, two, three] = [(); 3].map(|()| Random::new(random.next()));
            visitors.push(scope.spawn(move || keep_visiting(site, run, one)));
            scope.spawn(move || site.keep_restarting(run, two));
            scope.spawn(move || reconnecting(site, run, count, three));
            scope.spawn(move || fio_on_the_steady_one(site, run, count));
            scope.spawn(move || fio_behind_a_proxy(site, run, count));
        }
        watch(run, interrupted, &sites, &counts, &mut series);
        visitors.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let mut verdicts = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let name = site.runtime.name();
        let (count, verdict) = (counts[index], series[index].verdict());
        println!("\n{name}");
        for (kind, visits) in KINDS.iter().zip(visits[index]) {
            println!("  {visits:6} visitors: {kind}");
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!("  {:6} runs of fio on the server that stays, verified", load(&count.fio));
        println!(
            "  {:6} runs of fio behind a proxy that reconnects, verified",
            load(&count.proxied)
        );
        println!("  {:6} requests of a client that reconnects, verified", load(&count.requests));
        println!("  {:6} restarts, {} reconnects", load(&site.restarts), load(&count.reconnects));
        match verdict {
            None => println!("  too short to tell whether it is flat"),
            Some(Verdict { middle, last, is_flat }) => {
                println!("  middle third: {middle}");
                println!("  last third:   {last}");
                println!("  {}", if is_flat { "flat" } else { "NOT FLAT" });
            }
        }
        cooled_down(&run, site, calm[index]);
        site.close(&run);
        verdicts.push((site.runtime, verdict));
    }
    Ok(Report { faults: run.faults(), verdicts })
}

/// Measures every second, until the run is over.
fn watch(
    run: &Run,
    interrupted: &AtomicBool,
    sites: &[Site],
    counts: &[&Count],
    series: &mut [Series],
) {
    let mut line = 0;
    while !run.is_over() {
        run.pause(Duration::from_secs(1));
        if interrupted.load(Ordering::Relaxed) {
            run.end();
        }
        for (site, series) in sites.iter().zip(&mut *series) {
            let server = steady(site);
            if !server.is_running() {
                run.fault(format!(
                    "{}: the server ended: {}",
                    site.runtime.name(),
                    server.stderr()
                ));
                run.end();
                return;
            }
            series.push(Sample::of(&server));
        }
        let samples = series.first().map_or(0, Series::len);
        if !samples.is_multiple_of(SAMPLES_A_LINE) {
            continue;
        }
        line += 1;
        for ((site, series), count) in sites.iter().zip(&*series).zip(counts) {
            let Some(median) = series.median_since(samples - SAMPLES_A_LINE) else { continue };
            let (name, restarts) = (site.runtime.name(), site.restarts.load(Ordering::Relaxed));
            let fio = count.fio.load(Ordering::Relaxed);
            println!("{line:3} min  {name:9}  {median}  {fio:4} fio  {restarts:4} restarts");
        }
    }
}

/// A server that has had a client, and has none.
fn warmed_up(run: &Run, site: &Site) -> Sample {
    let before = Sample::of(&steady(site));
    let mut client = RawClient::go_simple(&site.endpoint);
    client.write(0, &[0; 4096]);
    client.finish();
    until_calm(run, site, before);
    Sample::of(&steady(site))
}

fn steady(site: &Site) -> MutexGuard<'_, Background> {
    site.steady.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All clients are gone: so must be what they held.
fn cooled_down(run: &Run, site: &Site, calm: Sample) {
    let now = until_calm(run, site, calm);
    println!("  at first, without clients: {calm}");
    println!("  in the end, without clients: {now}");
}

/// Waits until a server has as few descriptors as it had.
fn until_calm(run: &Run, site: &Site, before: Sample) -> Sample {
    let began = Instant::now();
    loop {
        let now = Sample::of(&steady(site));
        if now.descriptors <= before.descriptors {
            return now;
        }
        if began.elapsed() > CALM {
            run.fault(format!(
                "{}: descriptors are left without clients: {now}, at first {before}",
                site.runtime.name()
            ));
            return now;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
