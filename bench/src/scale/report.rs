//! What `hpc-bench scale` shows: a table of sizes, the budgets, the model and what it says of more nodes.

use super::counts::Counts;
use super::figures::{Growth, Size, growth, joining_against_unshare, least_busy};
use super::{Args, DIRECTORY, UNSHARE, key};
use crate::contender::{BARE, HPC_LAUNCH, Measured, Setup};
use crate::document::{Budget, Group, Noise, Report};
use crate::model::{self, Operations};
use crate::peer::CH_RUN;
use crate::report::{columns, number};
use crate::stats::Estimate;
use std::collections::BTreeMap;

/// Nodes of the machine that the model speaks of.
const NODES: usize = 10_000;
/// Ranks on each of them.
const RANKS: [usize; 2] = [64, 128];
/// Metadata operations in a second: one NFS server, a Lustre metadata server, several of them.
const SERVERS: [f64; 3] = [10_000.0, 50_000.0, 200_000.0];

/// What is assumed; it stands with every result.
const ASSUMPTIONS: [&str; 5] = [
    "nodes do their own part at the same time; here they shared this machine's processors, so times by host and by \
     rank are processor time: wall time × processors",
    "on a node, ranks start side by side (lower bound) or one after the other (upper bound)",
    "every operation costs the servers the same, they serve at a constant rate, and all nodes ask at once",
    "a node's client asks once for what it has looked up (cached), or again for each rank (uncached)",
    "the launcher's own fan-out over nodes is that of the bare launch, on which containers have no influence",
];

/// Brings everything together.
pub fn make(
    args: &Args,
    setup: &Setup,
    noise: Noise,
    sizes: Vec<Size>,
    counts: Vec<Counts>,
    mut notes: Vec<String>,
) -> Report {
    let mut groups: Vec<Group> = sizes.iter().map(size_group).collect();
    let growth = growth(&sizes, noise.cpus);
    let budgets = budgets(&sizes, &groups, &growth);
    notes.insert(0, sizes_text(&sizes, &groups));
    notes.extend(growth.iter().map(|growth| {
        let Growth { ranks, from, to, ratio } = growth;
        format!("added by host, {ranks} ranks on each, {to} hosts against {from}: {}", interval(ratio))
    }));
    notes.extend(counts_text(&counts));
    notes.extend(model_text(&sizes, &counts, noise.cpus));
    groups.extend(sizes.iter().map(added_group));
    groups.extend(counts.iter().flat_map(count_groups));
    let settings = BTreeMap::from([
        ("image".into(), setup.image.display().to_string()),
        ("mpiexec".into(), args.mpiexec.clone()),
        ("program".into(), "/bin/true".into()),
    ]);
    let title = "launches on simulated hosts".into();
    Report { bench: "scale".into(), title, settings, noise, groups, budgets, notes }
}

fn budgets(sizes: &[Size], groups: &[Group], growth: &[Growth]) -> Vec<Budget> {
    let (hosts, ranks) = sizes.last().map_or((0, 0), |size| (size.hosts, size.ranks));
    let largest = groups.last().and_then(|group| group.ratio(HPC_LAUNCH, BARE));
    let what = format!("launch of {hosts} hosts × {ranks} ranks against bare");
    let mut budgets = vec![Budget::at_most(what, 1.3, largest)];
    if let Some(Growth { ranks, from, to, ratio }) = growth.last() {
        let what = format!("what is added by host, {ranks} ranks on each, at {to} hosts against {from}");
        budgets.push(Budget::at_most(what, 1.1, Some(*ratio)));
    }
    if sizes.iter().any(|size| size.ranks != ranks) {
        let what = "what a host's further ranks add against an unshare for each";
        budgets.push(Budget::at_most(what, 1.0, joining_against_unshare(sizes)));
    }
    budgets
}

fn size_group(size: &Size) -> Group {
    let (hosts, ranks) = (size.hosts, size.ranks);
    let title = format!("{hosts} hosts × {ranks} ranks, whole job");
    let plot = format!("jobs of {ranks} ranks on each host");
    Group::new(key(hosts, ranks), title, "ms", &[BARE], &size.rows)
        .at(plot, hosts as f64, "hosts")
        .only_in_json()
}

/// What each row adds to the bare launch.
fn added_group(size: &Size) -> Group {
    let (hosts, ranks) = (size.hosts, size.ranks);
    let rows: Vec<Measured<f64>> = [UNSHARE, HPC_LAUNCH, CH_RUN]
        .into_iter()
        .filter_map(|name| {
            let row = size.rows.iter().find(|row| row.name == name && row.outcomes.is_ok())?;
            let added = size.added(name).into_iter().flatten().map(|ms| Ok(ms / hosts as f64)).collect();
            Some(Measured { name: name.into(), command: row.command.clone(), outcomes: Ok(added) })
        })
        .collect();
    let title = format!("{hosts} hosts × {ranks} ranks, added to the bare launch by host");
    let plot = format!("added by host, {ranks} ranks on each");
    let key = format!("{}/added", key(hosts, ranks));
    Group::new(key, title, "ms", &[], &rows).at(plot, hosts as f64, "hosts").only_in_json()
}

fn count_groups(count: &Counts) -> [Group; 2] {
    let group = |what: &str, title: &str, rows: &[(&str, usize)]| {
        let rows: Vec<Measured<f64>> = rows
            .iter()
            .map(|(name, n)| Measured {
                name: (*name).into(),
                command: String::new(),
                outcomes: Ok(vec![Ok(*n as f64)]),
            })
            .collect();
        let image = count.image;
        Group::new(format!("scale/{what}/{image}"), format!("{title}, image: {image}"), "calls", &[], &rows)
            .only_in_json()
    };
    let Operations { first, joining, program } = count.operations;
    let calls = [("first rank", count.first_calls), ("joining rank", count.joining_calls)];
    let asked = [
        ("first rank", first),
        ("joining rank", joining),
        ("program", program),
        ("reads, by node", count.reads),
    ];
    [
        group("calls", "system calls before the program starts", &calls),
        group("operations", "calls on the file system that the image is on", &asked),
    ]
}

fn interval(estimate: &Estimate) -> String {
    format!("{} [{}, {}]", number(estimate.value), number(estimate.low), number(estimate.high))
}

fn sizes_text(sizes: &[Size], groups: &[Group]) -> String {
    let names: Vec<&str> = groups.first().map_or_else(Vec::new, |group| {
        group.rows.iter().map(|row| row.name.as_str()).filter(|name| *name != BARE).collect()
    });
    let head = ["hosts × ranks", "bare, ms"].map(str::to_owned).into_iter();
    let head = head.chain(names.iter().map(|name| format!("× {name}")));
    let head = head.chain(["adds by host, ms", "by rank, ms", "unshare by rank, ms"].map(str::to_owned));
    let mut lines = vec![head.collect::<Vec<String>>()];
    for (group, size) in groups.iter().zip(sizes) {
        let mut line = vec![format!("{} × {}", size.hosts, size.ranks)];
        let bare = group.rows.iter().find(|row| row.name == BARE).and_then(|row| row.median);
        let cell = |estimate: Option<Estimate>| estimate.map_or("-".into(), |e| interval(&e));
        line.push(bare.map_or("FAILED".into(), |e| number(e.value)));
        line.extend(names.iter().map(|name| cell(group.ratio(name, BARE))));
        let (ours, theirs) = (size.share(HPC_LAUNCH), size.share(UNSHARE));
        line.push(cell(ours.as_ref().map(|added| added.per_host)));
        line.push(cell(ours.map(|added| added.per_rank)));
        line.push(theirs.map_or("-".into(), |added| number(added.per_rank.value)));
        lines.push(line);
    }
    format!("/bin/true on simulated hosts under hydra, whole jobs; × bare\n{}", columns(&lines))
}

fn counts_text(counts: &[Counts]) -> Option<String> {
    let head =
        ["image", "calls, first rank", "joining", "look-ups, first rank", "joining", "program", "reads"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for count in counts {
        let asked = &count.operations;
        let numbers =
            [count.first_calls, count.joining_calls, asked.first, asked.joining, asked.program, count.reads];
        lines.push([count.image.to_owned()].into_iter().chain(numbers.map(|n| n.to_string())).collect());
    }
    let title =
        "a node's system calls before the program starts, and those on the file system that the image is on";
    (!counts.is_empty()).then(|| format!("{title}\n{}", columns(&lines)))
}

fn model_text(sizes: &[Size], counts: &[Counts], processors: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let launches: Vec<_> = sizes.iter().filter_map(Size::bare_launch).collect();
    if let Some(bare) = model::bare(&launches) {
        notes.push(format!(
            "model of the bare launch: {} ms + {} ms by host + {} ms by rank (sizes are off by {:.0} %)",
            number(bare.fixed),
            number(bare.per_host),
            number(bare.per_rank),
            bare.off * 100.0
        ));
    }
    let from = least_busy(sizes, processors).unwrap_or(1);
    let added = |name| {
        let fitted = sizes.iter().filter(|size| size.hosts >= from);
        let launches: Vec<_> = fitted.filter_map(|size| size.added_launch(name)).collect();
        model::added(&launches)
    };
    let ours = added(HPC_LAUNCH);
    for (name, added) in [(HPC_LAUNCH, ours), (UNSHARE, added(UNSHARE))] {
        notes.extend(added.map(|added| {
            format!(
                "model of what {name} adds, from {from} hosts on: {} ms by host + {} ms by further rank (sizes are \
                 off by {:.0} %)",
                number(added.first),
                number(added.joining),
                added.off * 100.0
            )
        }));
    }
    if ours.is_none() {
        notes.push("no model of what hpc-launch adds: too few sizes, or it is lost in noise".into());
    }
    let Some(ours) = ours.filter(|_| !counts.is_empty()) else { return notes };
    notes.push(extrapolation(&ours, counts, processors));
    notes.push(sensitivity(&ours, &counts[0], processors));
    notes.extend(ASSUMPTIONS.iter().map(|assumption| format!("assumed: {assumption}")));
    notes
}

fn machine(ranks: usize, server: f64, processors_here: usize) -> model::Machine {
    model::Machine { nodes: NODES, ranks, processors_here, server }
}

fn bounds(launched: &model::Launched) -> String {
    format!("{} - {}", number(launched.node), number(launched.node_serial))
}

fn extrapolation(added: &model::Added, counts: &[Counts], processors: usize) -> String {
    let head = [
        "image",
        "nodes × ranks",
        "on each node, ms",
        "operations",
        "by node",
        "per second",
        "seconds",
        "uncached",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for count in counts {
        for (ranks, server) in RANKS.into_iter().flat_map(|ranks| SERVERS.map(|server| (ranks, server))) {
            let launched = machine(ranks, server, processors).launch(added, &count.operations);
            lines.push(vec![
                count.image.into(),
                format!("{NODES} × {ranks}"),
                bounds(&launched),
                format!("{:.0}", launched.operations),
                format!("{:.0}", launched.operations / NODES as f64),
                format!("{server:.0}"),
                number(launched.server_seconds),
                number(launched.server_seconds_uncached),
            ]);
        }
    }
    format!(
        "extrapolated, not measured: what is added, and the servers of the image's file system\n{}",
        columns(&lines)
    )
}

fn sensitivity(added: &model::Added, count: &Counts, processors: usize) -> String {
    let (base, asked) = (machine(RANKS[1], SERVERS[1], processors), count.operations);
    let slower = model::Added { joining: 2.0 * added.joining, ..*added };
    let more = |program| if count.image == DIRECTORY { program } else { 0 };
    let changes = [
        ("as above", base, *added, asked),
        ("half as many nodes", model::Machine { nodes: NODES / 2, ..base }, *added, asked),
        ("servers half as fast", model::Machine { server: base.server / 2.0, ..base }, *added, asked),
        ("ranks that join twice as slowly", base, slower, asked),
        ("first ranks that ask twice as much", base, *added, Operations { first: 2 * asked.first, ..asked }),
        ("a program that opens 200 files", base, *added, Operations { program: more(200), ..asked }),
        ("a program that opens 5000 files", base, *added, Operations { program: more(5000), ..asked }),
    ];
    let mut lines = vec![["with", "on each node, ms", "seconds", "uncached"].map(str::to_owned).to_vec()];
    for (with, machine, added, asked) in changes {
        let launched = machine.launch(&added, &asked);
        let seconds = [launched.server_seconds, launched.server_seconds_uncached].map(number);
        lines.push([with.to_owned(), bounds(&launched)].into_iter().chain(seconds).collect());
    }
    format!(
        "what that depends on ({NODES} × {}, image: {}, {} operations per second)\n{}",
        base.ranks,
        count.image,
        base.server,
        columns(&lines)
    )
}
