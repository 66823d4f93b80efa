//! `hpc-launch validate`, and what it must print.

use std::path::Path;
use std::time::Duration;

use crate::host::Who;
use crate::machine::text;
use crate::run::{Outcome, Run};

/// Validates an image with these options.
pub fn validate(who: Who, options: &[&str], image: &Path) -> Run {
    let arguments = ["validate"].iter().chain(options).copied().chain([text(image)]);
    Run::launch(who, arguments).limit(Duration::from_secs(120))
}

/// Its output has all of these.
#[track_caller]
pub fn has(outcome: &Outcome, parts: &[&str]) {
    for part in parts {
        assert!(outcome.out().contains(part), "{part}\n{outcome}");
    }
}
