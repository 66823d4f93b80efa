//! One measurement from its first sample to its last: which samples there are already, whether to stop, how long it
//! still takes, and what all benches of it share.

use crate::alternate::{Effort, Rounds, Sample};
use crate::contender::{Contender, Measured, Setup};
use crate::digest;
use crate::document::{Document, FORMAT, Image, Machine, Plan, Report, VERSION};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::journal::Journal;
use crate::machine::{self, Watch};
use crate::progress::Progress;
use crate::run::{CommandLine, Failure, Runner};
use std::time::{Duration, Instant, SystemTime};

/// What the benches of one measurement share.
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    journal: Option<Journal>,
    interrupt: Interrupt,
    progress: Progress,
    began: String,
    /// Before the first sample: later it is our own doing.
    load: f64,
    /// Of samples, those of earlier processes included.
    spent: Duration,
    images: Vec<Image>,
    plans: Vec<Plan>,
}

impl Session {
    /// Nothing is kept on the way unless there is a journal.
    pub fn new(journal: Option<Journal>, interrupt: Interrupt) -> Self {
        let began = journal.as_ref().map_or_else(now, |journal| journal.began().to_owned());
        let progress = Progress::new();
        if let Some(kept) = journal.as_ref().map(Journal::len).filter(|kept| *kept > 0) {
            progress.say(&format!("going on after {kept} samples, the first of {began}"));
        }
        Session {
            machine: machine::survey(),
            journal,
            interrupt,
            progress,
            began,
            load: machine::load(),
            spent: Duration::ZERO,
            images: Vec::new(),
            plans: Vec::new(),
        }
    }

    /// A runner that ends each run which takes longer than `limit`.
    pub fn runner(&self, limit: Duration) -> Result<Runner, Error> {
        Runner::new(limit, self.interrupt.clone())
    }

    /// Whether the user wants to end it.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.came()
    }

    /// Notes what is measured and with what: the image with its digest, the versions of hpc-launch and of `programs`.
    pub fn note(&mut self, setup: &Setup, runner: &mut Runner, programs: &[&str]) -> Result<(), Error> {
        let path = setup.image.display().to_string();
        if !self.images.iter().any(|image| image.path == path) {
            let image = digest::image(&setup.image)?;
            if let Some(journal) = &mut self.journal {
                journal.insist(&format!("the image {path}"), &image.digest)?;
            }
            self.images.push(image);
        }
        self.versions(setup, runner, programs)
    }

    /// Notes the versions alone.
    pub fn versions(&mut self, setup: &Setup, runner: &mut Runner, programs: &[&str]) -> Result<(), Error> {
        let versions = machine::versions(setup, runner, programs);
        if let Some(journal) = &mut self.journal {
            for (name, version) in &versions {
                journal.insist(&format!("the version of {name}"), version)?;
            }
            if let Ok(launcher) = &setup.launcher {
                journal.insist("the program hpc-launch", &digest::image(launcher)?.digest)?;
            }
        }
        self.machine.versions.extend(versions);
        Ok(())
    }

    /// Keeps what hpc-launch is going to do for a row, if it is one of hpc-launch's; each command's once.
    pub fn plan(
        &mut self,
        row: &str,
        line: &Result<CommandLine, String>,
        setup: &Setup,
        runner: &mut Runner,
    ) {
        let (Ok(line), Ok(launcher)) = (line, &setup.launcher) else { return };
        let command = line.to_string();
        if line.program != *launcher || self.plans.iter().any(|plan| plan.command == command) {
            return;
        }
        let asked: Vec<_> =
            ["plan".into(), "--json".into()].into_iter().chain(line.args.iter().cloned()).collect();
        let plan = match runner.output(&setup.line(launcher, &asked)) {
            Ok(text) => serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)),
            Err(failure) => serde_json::Value::String(failure.to_string()),
        };
        self.plans.push(Plan { row: row.into(), command, plan });
    }

    /// Begins to watch what else goes on.
    pub fn watch(&self) -> Watch {
        Watch::start(self.load)
    }

    /// How long what comes after the table that is measured next may take, for the time left.
    pub fn then(&mut self, later: Duration) {
        self.progress.then(later);
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Samples all rows that can run, alternating; the others come back with their reason. `key` tells the samples of
    /// this table from those of all others of the measurement.
    pub fn measure<T: Sample>(
        &mut self,
        key: &str,
        contenders: &[Contender],
        effort: &Effort,
        mut sample: impl FnMut(&str, &CommandLine) -> Result<T, Failure>,
    ) -> Vec<Measured<T>> {
        let able: Vec<(&str, &CommandLine)> =
            contenders.iter().filter_map(|c| Some((c.name.as_str(), c.line.as_ref().ok()?))).collect();
        let mut rounds = Rounds::new(key, able.len(), *effort);
        self.progress.start(key, effort);
        while !self.interrupt.came() {
            let Some(next) = rounds.next(|row, round| {
                self.journal.as_ref().is_some_and(|journal| journal.has(key, able[row].0, round))
            }) else {
                break;
            };
            let (name, line) = able[next.row];
            let kept = next.round.and_then(|n| self.journal.as_ref()?.find(key, name, n));
            let (outcome, seconds) = match kept {
                Some(kept) => kept,
                None => {
                    self.progress.run(name, &rounds);
                    let start = Instant::now();
                    let outcome = sample(name, line);
                    // What was cut short says nothing about the row.
                    if self.interrupt.came() {
                        break;
                    }
                    let seconds = start.elapsed().as_secs_f64();
                    if let (Some(n), Some(journal)) = (next.round, &mut self.journal) {
                        journal.keep(key, name, n, &outcome, seconds);
                    }
                    (outcome, seconds)
                }
            };
            self.spent += Duration::from_secs_f64(seconds);
            rounds.ran(next, outcome, seconds);
        }
        self.progress.finish();
        let mut outcomes = rounds.outcomes().into_iter();
        contenders
            .iter()
            .map(|c| match &c.line {
                Ok(line) => Measured {
                    name: c.name.clone(),
                    command: line.to_string(),
                    outcomes: Ok(outcomes.next().unwrap_or_default()),
                },
                Err(why) => {
                    Measured { name: c.name.clone(), command: String::new(), outcomes: Err(why.clone()) }
                }
            })
            .collect()
    }

    /// All of it, with what could not be kept on the way.
    pub fn document(self, command: String, reports: Vec<Report>) -> (Document, Option<Error>) {
        let trouble = self.journal.as_ref().and_then(Journal::trouble);
        let document = Document {
            format: FORMAT.into(),
            version: VERSION,
            began: self.began,
            seconds: self.spent.as_secs_f64(),
            interrupted: self.interrupt.came(),
            command,
            machine: self.machine,
            images: self.images,
            plans: self.plans,
            reports,
        };
        (document, trouble)
    }
}

/// RFC 3339, UTC, to the second.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
