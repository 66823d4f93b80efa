//! A plan for people: what will be done, in order, and why.

use std::fmt::Write;

use crate::error::harmless;
use crate::overlay::{By, Layer, Upper, Whose};
use crate::plan::{MpiVerdict, Plan, Relay, Step};

/// The plan as text, each line with the program's name in front.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "hpc-launch: {}", harmless(&text));
    };
    let kind = match plan.image.kind {
        crate::image::Kind::Directory => "directory",
        crate::image::Kind::Squashfs => "SquashFS file",
    };
    let copy = plan
        .image
        .copy_of
        .as_ref()
        .map_or(String::new(), |of| format!(", the node's copy of {}", of.display()));
    let signed = match &plan.image.signed_by[..] {
        [] => String::new(),
        keys => format!(", signed by {}", keys.join(" and ")),
    };
    line(format!("image      {} ({kind}{copy}{signed})", plan.image.path.display()));
    match &plan.job {
        Some(job) => line(format!(
            "launcher   {}, offers {}; rank {} of {}, {} on this node",
            job.rank.launcher.name(),
            job.rank.offers.name(),
            number(job.rank.rank),
            number(job.rank.size),
            number(job.rank.local_size),
        )),
        None => line("launcher   none: one process".to_owned()),
    }
    line(match &plan.mpi {
        MpiVerdict::Inject { mpi, replaces, .. } => {
            let replaced = match replaces {
                Some(image) => format!(", in the place of the image's {}", image.describe()),
                None => ", which the image lacks".to_owned(),
            };
            format!("MPI        the host's: {}{replaced}", mpi.describe())
        }
        MpiVerdict::Own { mpi } => format!("MPI        the image's own: {}", mpi.describe()),
        MpiVerdict::Bridge { mpi: Some(mpi), why } => {
            format!("MPI        the image's own, bridged: {}; {why}", mpi.describe())
        }
        MpiVerdict::Bridge { mpi: None, why } => format!("MPI        the program's own, bridged: {why}"),
        MpiVerdict::Forced { mpi, why } => {
            format!("MPI        the image's own, forced: {}; {why}", mpi.describe())
        }
        MpiVerdict::NoneSeen => "MPI        the program links none".to_owned(),
    });
    for fabric in &plan.fabrics {
        line(format!("fabric     the host's: {}", fabric.describe()));
    }
    for step in &plan.steps {
        line(format!("do         {}", step_text(step)));
    }
    for change in &plan.environment {
        line(match &change.value {
            Some(value) => format!("set        {}={value} — {}", change.name, change.why),
            None => format!("unset      {} — {}", change.name, change.why),
        });
    }
    line(format!("directory  {}", plan.workdir.display()));
    line(format!("exec       {} {}", plan.program.display(), plan.arguments.join(" ")).trim_end().to_owned());
    if let MpiVerdict::Inject { overridden, .. } = &plan.mpi {
        overridden.iter().for_each(|what| line(format!("note       --mpi=host overrides: {what}")));
    }
    for note in &plan.notes {
        line(format!("note       {note}"));
    }
    out
}

fn number(n: Option<u32>) -> String {
    n.map_or_else(|| "?".to_owned(), |n| n.to_string())
}

fn overlay_text(layers: &[Layer], upper: Option<&Upper>) -> String {
    let by = |by: &By| match by {
        By::Directory => String::new(),
        By::KernelSquashfs => " (SquashFS, mounted by the kernel)".to_owned(),
        By::KernelExt => " (ext2/3/4, mounted by the kernel)".to_owned(),
        By::Squashfuse(p) => format!(" (SquashFS, mounted by {})", p.display()),
        By::Fuse2fs(p) => format!(" (ext2/3/4, mounted by {})", p.display()),
    };
    let layer = |l: &Layer| format!("{}{}, read-only", l.path.display(), by(&l.by));
    let upper = upper.map(|u| {
        let whose = match u.whose {
            Whose::Node => "the node's ranks",
            Whose::Rank => "this rank",
            Whose::Alone => "this process",
        };
        format!("{}{}, which keeps what {whose} write", u.path.display(), by(&u.by))
    });
    let all: Vec<String> = layers.iter().map(layer).chain(upper).collect();
    format!("over it {}", all.join("; over that "))
}

fn step_text(step: &Step) -> String {
    match step {
        Step::UserNamespace { uid, gid } => {
            format!("user namespace, user {uid} and group {gid} stay themselves")
        }
        Step::MountNamespace => "mount namespace".to_owned(),
        Step::Root { image, offset, squashfs, writable } => {
            let from = if *offset > 0 { format!(" from byte {offset}") } else { String::new() };
            let how = match squashfs {
                None => String::new(),
                Some(crate::sandbox::squashfs::How::Kernel) => ", mounted by the kernel".to_owned(),
                Some(crate::sandbox::squashfs::How::Squashfuse(p)) => format!(", mounted by {}", p.display()),
            };
            let mode = if *writable { "writable in memory" } else { "read-only" };
            format!("root {}{from}{how}, {mode}", image.display())
        }
        Step::Overlay { layers, upper } => overlay_text(layers, upper.as_ref()),
        Step::Relay { at, by, make, .. } => {
            let made: Vec<_> = make.iter().map(|m| m.at.display().to_string()).collect();
            let by = match by {
                Relay::Tmpfs => "laid out anew in memory",
                Relay::Overlay => "overlaid in memory",
                Relay::Writable => "written to in memory",
                Relay::Beneath => "gets more in memory, beneath what is written",
            };
            format!("{} {by}, for {}", at.display(), made.join(", "))
        }
        Step::Tmpfs { at, why, .. } => format!("{} empty, in memory — {why}", at.display()),
        Step::Bind { source, at, read_only, why, .. } => {
            let mode = if *read_only { ", read-only" } else { "" };
            match source == at {
                true => format!("bind {}{mode} — {why}", at.display()),
                false => format!("bind {} at {}{mode} — {why}", source.display(), at.display()),
            }
        }
        Step::Links { at, links } => {
            let names: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
            format!("{} links to the host's {}", at.display(), names.join(", "))
        }
        Step::Helper { serves, launcher, at } => {
            format!("helper at {}: serves {} to the ranks, speaks {launcher}", at.display(), serves.name())
        }
        Step::Enter => "the root becomes /".to_owned(),
        Step::NoNewPrivileges => "no new privileges".to_owned(),
    }
}
