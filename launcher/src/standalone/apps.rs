//! `-n 2 IMAGE ./a : -n 1 IMAGE ./b`: the applications of one job.

use std::ffi::OsString;

use clap::Parser;

use crate::cli::{Cli, Run};
use crate::error::{Code, Error, Result};

/// More than any node has processors for; ranks are numbered in 32 bits, descriptors in fewer.
const MAX_RANKS: u32 = 65535;

/// One application.
#[derive(Debug)]
pub struct App {
    /// How many ranks.
    pub ranks: u32,
    /// What they run.
    pub run: Run,
}

/// All applications of a command line whose first part was parsed.
pub fn apps(first: Cli) -> Result<Vec<App>> {
    let mut apps = Vec::new();
    let mut rest = add(first, &mut apps)?;
    while !rest.is_empty() {
        // As a user would have typed it alone.
        let line = std::iter::once(OsString::from("hpc-launch")).chain(rest);
        let cli = Cli::try_parse_from(line).map_err(|e| {
            let text = e.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            usage(format!("behind `:`: {why}"))
        })?;
        rest = add(cli, &mut apps)?;
    }
    let total: u64 = apps.iter().map(|app| u64::from(app.ranks)).sum();
    if total > MAX_RANKS.into() {
        return Err(usage(format!("{total} ranks on one node; at most {MAX_RANKS} can be started")));
    }
    Ok(apps)
}

/// Adds one; answers what follows behind `:`.
fn add(cli: Cli, apps: &mut Vec<App>) -> Result<Vec<OsString>> {
    let Cli { job, options, image, mut command_line, .. } = cli;
    let (Some(ranks), Some(image)) = (job.ranks, image) else {
        return Err(usage("each part of a command line with `:` needs -n and an image".to_owned()));
    };
    if ranks == 0 {
        return Err(usage("-n 0: a job has at least one rank".to_owned()));
    }
    if !apps.is_empty() && job.is_more_than_ranks() {
        return Err(usage(
            "options of the whole job stand before the first image, not behind `:`".to_owned(),
        ));
    }
    let rest = match command_line.iter().position(|a| a == ":") {
        Some(at) => {
            let rest = command_line.split_off(at + 1);
            command_line.truncate(at);
            if rest.is_empty() {
                return Err(usage("nothing follows `:`".to_owned()));
            }
            rest
        }
        None => Vec::new(),
    };
    if command_line.is_empty() && !rest.is_empty() {
        return Err(usage("no command stands before `:`".to_owned()));
    }
    apps.push(App { ranks, run: Run { options, image, command: command_line } });
    Ok(rest)
}

fn usage(what: String) -> Error {
    Error::new(
        Code::Usage,
        what,
        "hpc-launch -n N IMAGE COMMAND [: -n N IMAGE COMMAND]…; see hpc-launch --help",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Vec<(u32, String, String)>, String> {
        let line = format!("hpc-launch {line}");
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|e| e.to_string())?;
        let text = |app: &App| {
            let words: Vec<_> = app.run.command.iter().map(|a| a.to_string_lossy().into_owned()).collect();
            (app.ranks, app.run.image.display().to_string(), words.join(" "))
        };
        apps(cli).map(|apps| apps.iter().map(text).collect()).map_err(|e| e.what)
    }

    #[test]
    fn parts_are_parsed_like_whole_lines() {
        let one = |n, image: &str, command: &str| (n, image.to_owned(), command.to_owned());
        assert_eq!(parse("-n 4 img ./a -n 9"), Ok(vec![one(4, "img", "./a -n 9")]));
        assert_eq!(
            parse("-n 2 --tag-output img ./a x : -n 1 --env A=b img2 ./b"),
            Ok(vec![one(2, "img", "./a x"), one(1, "img2", "./b")])
        );
        for (line, why) in [
            ("-n 0 img ./a", "-n 0: a job has at least one rank"),
            ("-n 1 img ./a :", "nothing follows `:`"),
            ("-n 1 img : -n 1 img ./b", "no command stands before `:`"),
            ("-n 1 img ./a : img ./b", "each part of a command line with `:` needs -n and an image"),
            ("-n 1 img ./a : -n 1 --tag-output img ./b", "options of the whole job stand before"),
            ("-n 60000 img ./a : -n 60000 img ./b", "120000 ranks on one node"),
            ("-n 1 img ./a : -n x img ./b", "behind `:`: invalid value 'x'"),
        ] {
            let said = parse(line).unwrap_err();
            assert!(said.starts_with(why), "{line}: {said}");
        }
    }
}
