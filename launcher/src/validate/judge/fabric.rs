//! What verbs, UCX and libfabric make of the host's adapters.

use super::{Around, broken, cure_of, error_text, is_absent, opened};
use crate::validate::Area;
use crate::validate::child::Outcome;
use crate::validate::facts::Facts;
use crate::validate::table::Table;

/// ENOMEM.
const NO_MEMORY: i64 = 12;
/// FI_ENODATA.
const NO_DATA: i64 = -61;

/// Verbs; answers whether the library finds fewer devices than there are.
pub fn verbs(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Verbs, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let expected = around.adapters.iter().filter(|a| a.class == "infiniband").count() as i64;
    let count = facts.one("devices").and_then(|fact| fact.number("count")).unwrap_or(0);
    if expected == 0 && count == 0 {
        table.skip(area, "the library works and finds no device, as this host has none");
        return false;
    }
    if count < expected {
        let why = complaint(&outcome.err).unwrap_or_else(|| around.missing().to_owned());
        table.fail(
            area,
            format!("libibverbs inside finds {count} of {expected} devices: {why}"),
            "its provider is missing or does not fit: --fabric=host takes the host's set, which fits the host's driver",
        );
    }
    for fact in facts.all("opened") {
        let (name, errno) = (fact.text("name"), fact.number("errno").unwrap_or(0));
        if errno != 0 {
            let why = complaint(&outcome.err).map(|why| format!("; {why}")).unwrap_or_default();
            table.fail(
                area,
                format!("{name} cannot be opened: {}{why}", error_text(errno)),
                "the provider may be older than the kernel's driver: --fabric=host takes the host's",
            );
        }
    }
    for fact in facts.all("port").filter(|fact| fact.number("state") != Some(4)) {
        let (name, port) = (fact.text("name"), fact.text("port"));
        table.fail(
            area,
            format!("{name} port {port} is not active, seen inside"),
            "see the host's lines on this port",
        );
    }
    for fact in facts.all("write") {
        let place = format!("{} port {}", fact.text("name"), fact.text("port"));
        if let Some(bytes) = fact.number("bytes") {
            let (took, good) = (fact.text("microseconds"), fact.is_set("equal"));
            let evidence = format!("{place}: an RC queue pair wrote {bytes} bytes to itself in {took} µs");
            match good {
                true => table.pass(area, evidence),
                false => table.fail(
                    area,
                    evidence + ", and other bytes arrived",
                    "the adapter or its driver is broken",
                ),
            }
        } else if let Some(status) = fact.number("completion") {
            table.fail(
                area,
                format!("{place}: the write completed with status {status} (ibv_wc_status)"),
                "12 is a time-out: nothing comes back on this port; look at the link, the address (GID) and the switch",
            );
        } else {
            let errno = fact.number("errno").unwrap_or(0);
            let cure = match errno {
                NO_MEMORY => "the limit of locked memory is too low: see the line on memory",
                _ => "see the kernel's log; the provider may be older than the kernel's driver",
            };
            let failed = fact.text("failed");
            let text = if errno == 0 { String::new() } else { format!(": {}", error_text(errno)) };
            table.fail(area, format!("{place}: {failed}{text}"), cure);
        }
    }
    count < expected
}

/// Why providers do not load: libibverbs keeps that to itself (libibverbs/init.c, load_driver, looks for another file
/// then, and complains that this is missing).
pub fn providers(table: &mut Table, outcome: &Outcome, around: &Around) {
    let facts = Facts::of(&outcome.out);
    for fact in facts.all("library").filter(|fact| !fact.text("error").is_empty() && !is_absent(fact)) {
        let (name, error) = (fact.text("name"), fact.text("error"));
        table.fail(
            Area::Verbs,
            format!("the provider {name} cannot be loaded: {error}"),
            cure_of(error, around),
        );
    }
}

/// What libibverbs complains about where it was asked to.
fn complaint(err: &str) -> Option<String> {
    let line = err.lines().find(|line| line.starts_with("libibverbs:"))?;
    Some(line.chars().take(300).collect())
}

/// UCX; answers whether it works.
pub fn ucx(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Ucx, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let version = facts.one("version").map_or("", |fact| fact.text("text"));
    match facts.one("initialised").and_then(|fact| fact.number("status")) {
        Some(0) => {}
        status => {
            let status = status.map_or("unknown".to_owned(), |s| s.to_string());
            let said = outcome.said();
            let cure =
                "look at UCX_TLS and UCX_NET_DEVICES (hpc-launch passes them on), and at what UCX says above";
            table.fail(area, format!("UCX {version} does not start: status {status}; {said}"), cure);
            return false;
        }
    }
    let transports: Vec<&str> = facts
        .others
        .iter()
        .filter(|line| line.contains("resource "))
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let is_rdma = |name: &&&str| ["rc", "dc", "ud"].iter().any(|t| name.starts_with(t)) && name.contains('/');
    let ports = around.active_ports();
    let shown = transports.join(" ");
    let whose = facts.one("library").map_or("", |fact| around.whose(fact.text("path")));
    if !ports.is_empty() && !transports.iter().any(|name| is_rdma(&name)) {
        table.fail(
            area,
            format!("UCX {version} ({whose}) uses none of the active ports {}: it has {shown}", ports.join(", ")),
            "jobs would run over TCP at a fraction of the speed: --fabric=host takes the host's UCX, with its module for \
             InfiniBand; see also UCX_TLS and UCX_NET_DEVICES",
        );
    } else {
        table.pass(area, format!("UCX {version} ({whose}): {shown}"));
        return true;
    }
    false
}

/// libfabric; answers whether it works.
pub fn libfabric(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Libfabric, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let version =
        facts.one("version").map_or(String::new(), |f| format!("{}.{}", f.text("major"), f.text("minor")));
    let whose = facts.one("library").map_or("", |fact| around.whose(fact.text("path")));
    let status = facts.one("information").and_then(|fact| fact.number("status")).unwrap_or(0);
    let mut providers: Vec<&str> = facts.all("provider").map(|fact| fact.text("name")).collect();
    providers.sort_unstable();
    providers.dedup();
    let ports = around.active_ports();
    let has_cxi = around.adapters.iter().any(|a| a.class.starts_with("cxi"));
    if status != 0 {
        let why =
            if status == NO_DATA { around.missing() } else { "see what it says with FI_LOG_LEVEL=warn" };
        table.fail(
            area,
            format!("libfabric {version} ({whose}): fi_getinfo answers {status} ({})", error_text(status)),
            format!("{why}; look at FI_PROVIDER and FI_PROVIDER_PATH, or take the host's with --fabric=host"),
        );
    } else if (!ports.is_empty() && !providers.iter().any(|p| p.starts_with("verbs") || p.starts_with("efa")))
        || (has_cxi && !providers.iter().any(|p| p.contains("cxi")))
    {
        let wanted = if has_cxi { "cxi" } else { "verbs" };
        table.fail(
            area,
            format!("libfabric {version} ({whose}) has no provider {wanted}: it has {}", providers.join(" ")),
            format!("{}; --fabric=host takes the host's libfabric with its providers", around.missing()),
        );
    } else {
        table.pass(area, format!("libfabric {version} ({whose}): {}", providers.join(" ")));
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::samples::{around, outcome};
    use super::*;
    use crate::validate::child::End;

    #[test]
    fn a_probe_that_dies_says_where() {
        let mut table = Table::default();
        let died = outcome(End::Signal(nix::sys::signal::Signal::SIGBUS), "opening\tname=libucp.so.0\n", "");
        assert!(!ucx(&mut table, &died, &around()));
        assert!(
            table.lines[0].evidence.contains("was killed by SIGBUS (7) while libucp.so.0 was loaded"),
            "{:?}",
            table.lines
        );
        let hung = outcome(End::TimeOut(Duration::from_secs(9)), "", "");
        verbs(&mut table, &hung, &around());
        assert!(
            table.lines[1].evidence.contains("did not end within 9 s before it began"),
            "{:?}",
            table.lines
        );
    }
}
