//! Shows how far an import is: a bar with bytes and time left on a terminal, two lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use image_store::import::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};

const BEAT: Duration = Duration::from_millis(100);
/// Ranks that wait for this node's first lose patience later.
const NOW_AND_THEN: Duration = Duration::from_secs(10);
/// What takes less is not worth a bar.
const SHORT: Duration = Duration::from_millis(300);

/// Does the work, while it is shown; `what` is said once it is clear that there is something to do, or afterwards if
/// `must_say` finds that it should have been.
pub fn shown<T>(
    what: &str,
    progress: &Progress,
    waited_for: &(dyn Fn() + Sync),
    must_say: impl FnOnce(&T) -> bool,
    work: impl FnOnce(&mut dyn FnMut(&str)) -> std::result::Result<T, image_store::Error>,
) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let show = || {
            let bar = Bar::new(what);
            let mut told = Instant::now();
            let since = Instant::now();
            while !done.load(Ordering::Acquire) {
                thread::park_timeout(BEAT);
                if since.elapsed() > SHORT {
                    bar.show(progress);
                }
                if told.elapsed() > NOW_AND_THEN {
                    told = Instant::now();
                    waited_for();
                }
            }
            bar.end();
            bar.said.get()
        };
        let shower = thread::Builder::new().spawn_scoped(scope, show);
        let mut is_waiting = false;
        let result = work(&mut |holder| {
            // Once: it says something new all the time.
            if !std::mem::replace(&mut is_waiting, true) && std::io::stderr().is_terminal() {
                eprintln!("hpc-launch: waiting for {holder}");
            }
        });
        done.store(true, Ordering::Release);
        let said = shower.is_ok_and(|shower| {
            shower.thread().unpark();
            shower.join().unwrap_or(false)
        });
        let result = result.map_err(Error::from)?;
        if !said && must_say(&result) {
            eprintln!("hpc-launch: {what}");
        }
        Ok(result)
    })
}

struct Bar<'a> {
    what: &'a str,
    said: std::cell::Cell<bool>,
    bar: ProgressBar,
}

impl Bar<'_> {
    fn new(what: &str) -> Bar<'_> {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Bar { what, said: std::cell::Cell::new(false), bar: ProgressBar::with_draw_target(Some(0), target) }
    }

    fn show(&self, progress: &Progress) {
        let (read, all) = (progress.read.load(Ordering::Relaxed), progress.all.load(Ordering::Relaxed));
        if !self.said.replace(true) {
            eprintln!("hpc-launch: {}", self.what);
            let style = match all {
                0 => ProgressStyle::with_template("{bytes} {bytes_per_sec}"),
                _ => ProgressStyle::with_template(
                    "[{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
                ),
            };
            if let Ok(style) = style {
                self.bar.set_style(style.progress_chars("=> "));
            }
        }
        self.bar.set_length(all);
        self.bar.set_position(read);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
