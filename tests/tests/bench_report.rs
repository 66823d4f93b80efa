//! What `hpc-bench` makes of a kept measurement: the page as a real browser lays it out, the CSV as another program
//! reads it, and what a comparison says to CI.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hpc_launch_tests::browser::Browser;
use hpc_launch_tests::host::{self, Who, is_root};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::machine::text;
use hpc_launch_tests::run::{Outcome, Run};
use serde_json::{Value, json};
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

fn kept() -> Value {
    serde_json::from_str(&fs::read_to_string(data("bench.json")).expect("a measurement")).expect("JSON")
}

fn who() -> Who {
    if is_root() { Who::Root } else { Who::User }
}

fn bench(arguments: &[&str]) -> Outcome {
    Run::command(who(), [host::bench()]).args(arguments).run()
}

/// A document in a file of its own, with room beside it.
struct File {
    dir: TempDir,
}

impl File {
    fn new(document: &Value) -> File {
        File::of(document.to_string())
    }

    fn of(text: impl AsRef<[u8]>) -> File {
        let file = File { dir: directory("/var/tmp") };
        fs::write(file.at("a.json"), text).expect("a file");
        file
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self) -> String {
        text(&self.at("a.json")).to_owned()
    }

    /// Its page.
    fn page(&self) -> String {
        bench(&["report", &self.path(), "--html", text(&self.at("a.html"))]).good();
        fs::read_to_string(self.at("a.html")).expect("a page")
    }
}

fn rows(document: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let groups = document["reports"].as_array().expect("reports").iter().flat_map(|r| r["groups"].as_array());
    groups
        .flatten()
        .flat_map(|group| group["rows"].as_array().expect("rows").iter().map(move |row| (group, row)))
}

/// All rows, to be changed.
fn change(document: &mut Value, mut each: impl FnMut(&str, &mut Value)) {
    for report in document["reports"].as_array_mut().expect("reports") {
        for group in report["groups"].as_array_mut().expect("groups") {
            let key = group["key"].as_str().expect("a key").to_owned();
            group["rows"].as_array_mut().expect("rows").iter_mut().for_each(|row| each(&key, row));
        }
    }
}

fn python(script: &str, arguments: &[&str], input: String) -> Outcome {
    Run::command(who(), ["python3", "-c", script]).args(arguments).stdin(input).run()
}

#[test]
fn a_measurement_keeps_to_the_schema() {
    let schema = data("../../docs/bench.schema.json").canonicalize().expect("the schema");
    let script = "import json, sys, jsonschema; jsonschema.validate(json.load(sys.stdin), json.load(open(sys.argv[1])))";
    let judge = |document: &Value| python(script, &[text(&schema)], document.to_string());
    judge(&kept()).good();
    for (place, wrong) in [
        ("/version", json!(2)),
        ("/reports/0/groups/0/better", json!("faster")),
        ("/reports/0/groups/0/rows/0/median/low", json!("1")),
        ("/reports/0/groups/0/rows/0/samples/0", json!("x")),
        ("/reports/1/noise/clock", json!([1.0])),
    ] {
        let mut document = kept();
        *document.pointer_mut(place).expect(place) = wrong;
        judge(&document).says(&["ValidationError"]);
        assert_eq!(
            bench(&["report", &File::new(&document).path(), "--csv", "/dev/null"]).code(),
            Some(125),
            "{place}"
        );
    }
}

#[test]
fn the_table_is_read_by_another_program() {
    let file = File::new(&kept());
    bench(&["report", &file.path(), "--csv", text(&file.at("a.csv"))]).good();
    let script =
        "import csv, json, sys; print(json.dumps(list(csv.DictReader(open(sys.argv[1], newline='')))))";
    let read: Value =
        serde_json::from_str(&python(script, &[text(&file.at("a.csv"))], String::new()).good().out())
            .expect("JSON");
    let (read, kept) = (read.as_array().expect("lines"), kept());
    assert_eq!(read.len(), rows(&kept).count());
    for (line, (group, row)) in read.iter().zip(rows(&kept)) {
        assert_eq!((&line["group"], &line["row"]), (&group["key"], &row["name"]));
        assert!(line.get("null").is_none(), "more fields than columns: {line}");
        let number = |name: &str| line[name].as_str().expect("a field").parse::<f64>().ok();
        // The last digit may be another, once it was read and written.
        let same = |a: Option<f64>, b: &Value| match (a, b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b.abs(),
            (a, b) => a == b,
        };
        assert!(same(number("median"), &row["median"]["value"]), "{line}");
        assert!(same(number("ratio_low"), &row["ratios"]["bare"]["low"]), "{line}");
        let failed: f64 =
            row["failures"].as_array().expect("failures").iter().filter_map(|f| f["runs"].as_f64()).sum();
        assert_eq!(number("failed_runs"), Some(failed));
        assert_eq!(
            line["first_failure"].as_str().is_some_and(|said| !said.is_empty()),
            failed > 0.0,
            "{line}"
        );
    }
}

/// What has to be drawn: points, and crosses for failed rows.
fn marks(document: &Value) -> (usize, usize) {
    let plot = |group: &Value| (group["point"]["plot"].clone(), group["unit"].clone());
    let places = |of: &Value| {
        let same = rows(document).filter(|(group, _)| !of["point"].is_null() && plot(group) == plot(of));
        same.map(|(group, _)| group["point"]["x"].to_string()).collect::<BTreeSet<_>>().len()
    };
    rows(document).fold((0, 0), |(points, failed), (group, row)| {
        let lines = places(group) > 1;
        let ratio = lines && !row["ratios"]["bare"].is_null();
        let fails = row["failures"].as_array().is_some_and(|all| !all.is_empty());
        (
            points + usize::from(!row["median"].is_null()) + usize::from(ratio),
            failed + usize::from(fails) * if lines { 2 } else { 1 },
        )
    })
}

#[track_caller]
fn looks_right(found: &Value, document: &Value) {
    assert_eq!(found["problems"], json!([]), "{:#}", found["problems"]);
    let (points, failed) = marks(document);
    assert_eq!((&found["points"], &found["failed"]), (&json!(points), &json!(failed)));
    assert_eq!(found["hover"], json!(points + failed), "every mark tells its numbers");
    assert_eq!(found["unlabelled"], json!(0));
    assert_eq!(found["pwned"], json!(false));
    // Nothing that loads or runs, whoever wrote it.
    let known = "b body br circle code dd details div dl dt em figcaption figure g h1 h2 h3 head header html i li line main \
                 meta p path pre rect section small span style summary svg table tbody td text th thead title tr ul";
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    let names = found["names"].as_array().expect("names").iter().filter_map(Value::as_str);
    assert_eq!(names.filter(|name| !known.contains(name)).collect::<Vec<_>>(), Vec::<&str>::new());
    let attributes = found["attributes"].as_array().expect("attributes").iter().filter_map(Value::as_str);
    let acts =
        |name: &&str| name.starts_with("on") || ["src", "href", "style", "id=\"", "action"].contains(name);
    assert_eq!(attributes.filter(acts).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn a_browser_lays_the_page_out() {
    let (document, browser) = (kept(), Browser::new());
    let page = File::new(&document).page();
    for width in [1200, 400] {
        let found = browser.measure(&page, width, false, "");
        looks_right(&found, &document);
        assert_eq!(found["plots"], json!(10), "two of each of four plots, and two sets of bars");
        assert_eq!(found["entries"], json!(8 + 8 + 6 + 5), "a mark for every row that ran");
        let shown = found["text"].as_str().expect("text");
        for part in [
            "Interrupted:",
            "timed out after 30 s at 4 MiB",
            "apptainer: not run",
            "not installed: apt-get install apptainer",
            "PMIX ERROR: <NO_PERMISSIONS>",
            "bandwidth at 4096 KiB against bare",
            "the machine was busy before the first sample",
            "How to read this",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert_eq!(found["paper"], "rgb(255, 255, 255)");
    }
    // What must be found is found.
    for (sabotage, finds) in [
        ("overlap", "texts overlap"),
        ("cut", "a text is cut off"),
        ("unmarked", "an entry of a legend without a mark"),
        ("wide", "a picture beyond the page"),
    ] {
        let found = browser.measure(&page, 400, false, sabotage);
        let problems = found["problems"].to_string();
        assert!(problems.contains(finds), "{sabotage} was not found: {problems}");
    }
    let dark = browser.measure(&page, 1200, true, "");
    looks_right(&dark, &document);
    assert_eq!(dark["paper"], "rgb(21, 24, 27)", "dark where the reader's system is");
}

#[test]
fn a_browser_has_nothing_to_complain_of() {
    let browser = Browser::new();
    let page = File::new(&kept()).page();
    assert_eq!(browser.complaints(&page), Vec::<String>::new());
    // The policy holds, and complaints are seen: another style sheet than ours is refused.
    let other = browser.complaints(&page.replacen("<style>", "<style>p{color:red}", 1));
    assert!(other.iter().any(|line| line.contains("Content Security Policy")), "{other:?}");
    let picture = browser.picture(&page, 1200, 3000).len();
    let empty = browser.picture("<!DOCTYPE html><html><body></body></html>", 1200, 3000).len();
    assert!(picture > 8 * empty, "a picture of {picture} bytes, where nothing takes {empty}");
}

#[test]
fn what_images_wrote_stays_text() {
    let bad = "\u{1b}[31m</title></style></svg>]]><script>parent.pwned=true</script><img src=x onerror='parent.pwned=true'>\
               \"' onload=\"parent.pwned=true\u{0}\u{202e}\u{7}漢字🦀";
    let long = format!("{bad}{}", "W".repeat(5000));
    let mut text = kept().to_string();
    let quoted = |text: &str| {
        let text = serde_json::to_string(text).expect("text");
        text[1..text.len() - 1].to_owned()
    };
    for (word, by) in [
        ("podman", quoted(&long)),
        ("bwrap", quoted(bad)),
        ("timed out after 30 s", quoted(&long)),
        ("PMIX ERROR", quoted(&long)),
        ("not installed", quoted(bad)),
        ("µs", quoted(bad)),
        ("MFLOP/s", quoted(&long)),
        ("Latency, Open MPI", quoted(&long)),
        ("Debian GNU/Linux", quoted(&long)),
        ("AMD EPYC", quoted(&long)),
        ("same family", quoted(bad)),
        ("bandwidth at 32 KiB", quoted(&long)),
        ("mpirun.openmpi", quoted(&long)),
        ("\"ranks\"", format!("\"{}\"", quoted(&long))),
    ] {
        assert!(text.contains(word), "{word}");
        text = text.replace(word, &by);
    }
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let (file, browser) = (File::new(&document), Browser::new());
    let page = file.page();
    for width in [1200, 400] {
        let found = browser.measure(&page, width, false, "");
        looks_right(&found, &document);
        assert!(
            found["text"].as_str().is_some_and(|text| text.contains("<script>parent.pwned=true</script>"))
        );
    }
    assert_eq!(browser.complaints(&page), Vec::<String>::new());
    // Nor does a terminal take commands from it.
    let mut other = document.clone();
    change(&mut other, |_, row| {
        row["samples"].as_array_mut().expect("samples").iter_mut().for_each(|s| *s = json!(1.0))
    });
    let outcome = bench(&["compare", &file.path(), &File::new(&other).path()]).good();
    assert!(outcome.out().contains("␛[31m") && !outcome.out().contains('\u{1b}'), "{outcome}");
    assert!(outcome.out().lines().all(|line| line.chars().count() < 600), "{outcome}");
}

#[test]
fn odd_documents_are_pages_too() {
    let browser = Browser::new();
    // Nothing measured at all.
    let mut document = kept();
    document["reports"] = json!([]);
    looks_right(&browser.measure(&File::new(&document).page(), 400, false, ""), &document);
    // Sizes from 0 B on, all powers of two, forty rows, numbers of every magnitude, noise as wide as the axis.
    let mut document = kept();
    let mut groups = Vec::new();
    for (n, x) in std::iter::once(0_u64).chain((0..=22).map(|power| 1 << power)).enumerate() {
        let row = |m: u32| {
            let value = 10_f64.powi(n as i32 * 4 - 40) * f64::from(m + 1);
            let estimate = |v: f64| json!({"value": v, "low": v * 0.2, "high": v * 30.0, "samples": 3});
            let name = if m == 0 { "bare".into() } else { format!("row {m}, with a name of some length") };
            json!({"name": name, "command": "x", "samples": [value, value, value], "median": estimate(value),
                   "ratios": if m == 0 { json!({}) } else { json!({"bare": estimate(f64::from(m + 1))}) },
                   "failures": [], "not_run": null})
        };
        groups.push(json!({"key": format!("odd/{x}"), "title": "odd", "unit": "s", "better": "lower",
            "point": {"plot": "odd", "x": x, "x_unit": "B"}, "rows": (0..40).map(row).collect::<Vec<_>>()}));
    }
    let mut lone = groups[3].clone();
    lone["point"] = Value::Null;
    lone["key"] = json!("lone");
    groups.push(lone);
    document["reports"][0]["groups"] = json!(groups);
    for width in [1200, 400] {
        looks_right(&browser.measure(&File::new(&document).page(), width, false, ""), &document);
    }
}

#[test]
fn what_cannot_be_read_says_why() {
    let whole = kept().to_string();
    let with = |place: &str, value: Value| {
        let mut document = kept();
        *document.pointer_mut(place).expect(place) = value;
        document.to_string()
    };
    let upside = json!({"value": 1.0, "low": 2.0, "high": 0.5, "samples": 3});
    for (content, says) in [
        (String::new(), "it is empty"),
        (whole[..whole.len() / 2].to_owned(), "it ends in the middle"),
        ("\u{7f}ELF".to_owned(), "it cannot be read as JSON"),
        ("{\"a\": 1}".to_owned(), "it is not a file of hpc-bench's"),
        (with("/version", json!(7)), "its version is 7, and this hpc-bench reads version 1"),
        (with("/reports/0/groups/0/rows/0/median", upside), "an interval is upside down: 2 to 0.5"),
        (whole.replacen("\"seconds\":812.4", "\"seconds\":NaN", 1), "it cannot be read as JSON"),
        (whole.replacen("\"seconds\":812.4", "\"seconds\":1e999", 1), "number out of range"),
        (
            with("/reports/0/groups/1/key", kept()["reports"][0]["groups"][0]["key"].clone()),
            "two groups have the key",
        ),
    ] {
        let file = File::of(&content);
        let good = File::new(&kept());
        for arguments in [
            vec!["report".into(), file.path(), "--csv".into(), text(&file.at("out")).to_owned()],
            vec!["compare".into(), file.path(), good.path()],
            vec!["compare".into(), good.path(), file.path()],
        ] {
            let outcome = bench(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(outcome.code(), Some(125), "{outcome}");
            let outcome = outcome.says(&[&format!("cannot read {}: ", file.path()), says, "\n  to do: "]);
            assert!(outcome.stdout.is_empty() && !file.at("out").exists(), "{outcome}");
        }
    }
    for (path, says) in
        [("/no/such.json", "No such file"), ("/var", "Is a directory"), ("/dev/zero", "larger than 64 MiB")]
    {
        let outcome = bench(&["compare", path, path]).says(&[says]);
        assert_eq!(outcome.code(), Some(125), "{outcome}");
    }
    // Nothing in common.
    let mut other = kept();
    other["reports"].as_array_mut().expect("reports").truncate(1);
    let mut another = kept();
    another["reports"].as_array_mut().expect("reports").remove(0);
    let outcome = bench(&["compare", &File::new(&other).path(), &File::new(&another).path()]);
    assert_eq!(outcome.says(&["no row of the one was measured in the other"]).code(), Some(125));
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let file = File::new(&kept());
    let outcome = bench(&["report", &file.path(), "--html", "/dev/full"])
        .says(&["No space left", "give --html another"]);
    assert_eq!(outcome.code(), Some(125));
    if !is_root() {
        return;
    }
    let place = text(file.dir.path());
    let script = format!(
        "cd {place}/full && echo before > a.html && {} report ../a.json --html a.html; echo $?; cat a.html; ls -A",
        host::bench().display()
    );
    fs::create_dir(file.at("full")).expect("a directory");
    Run::command(Who::Root, ["sh", "-c", &script])
        .prelude(format!("mount -t tmpfs -o size=64k none {place}/full"))
        .run()
        .says(&[
            "cannot write a.html: No space left on device",
            "nothing there was changed",
            "make room there",
        ])
        .prints("125\nbefore\na.html");
}

#[test]
fn a_comparison_tells_ci() {
    let file = File::new(&kept());
    let same = bench(&["compare", &file.path(), &file.path()]).good();
    assert!(same.out().contains("\n0 worse, 0 failing now, 0 better, "), "{same}");

    // A fifth slower where ranks start, on a machine that is half as fast, with another version.
    let mut slow = kept();
    change(&mut slow, |key, row| {
        let ours = row["name"].as_str().is_some_and(|name| name.starts_with("hpc-launch"))
            && key.starts_with("start/job");
        let by = if ours { 2.4 } else { 2.0 };
        for sample in row["samples"].as_array_mut().expect("samples") {
            *sample = sample.as_f64().map_or(Value::Null, |s| json!(s * by));
        }
    });
    slow["machine"]["versions"]["hpc-launch"] = json!("hpc-launch 0.2.0");
    let slow = File::new(&slow);
    let worse = bench(&["compare", &file.path(), &slow.path()]);
    assert_eq!(worse.code(), Some(1), "{worse}");
    let said = worse.out();
    assert!(said.contains("differs: hpc-launch: hpc-launch 0.1.0 in A, hpc-launch 0.2.0 in B"), "{worse}");
    assert!(said.contains("\nbecame worse (ratios, by more than 5 %)\n"), "{worse}");
    assert!(said.contains("mpirun -n 256 true: hpc-launch, host's MPI"), "{worse}");
    assert!(said.contains("\n9 worse, 0 failing now, 0 better, "), "{worse}");
    let compare = |more: &[&str]| bench(&[&["compare", &file.path(), &slow.path()], more].concat());
    assert_eq!(compare(&["--tolerance", "25"]).code(), Some(0));
    assert_eq!(compare(&["--tolerance", "25", "--absolute"]).code(), Some(1));
    assert_eq!(compare(&["--tolerance", "x"]).code(), Some(2));
    let better = bench(&["compare", &slow.path(), &file.path()]).good();
    assert!(better.out().contains("\nbecame better\n"), "{better}");

    let outcome = compare(&["--json"]);
    assert_eq!(outcome.code(), Some(1));
    let found: Value = serde_json::from_str(&outcome.out()).expect("JSON");
    assert_eq!(
        (&found["version"], &found["compared"], &found["tolerance"]),
        (&json!(1), &json!("ratio"), &json!(5.0))
    );
    let changes = found["changes"].as_array().expect("changes");
    assert!(changes[..9].iter().all(|change| change["kind"] == "regression"));
    assert!(changes[9..].iter().all(|change| change["kind"] != "regression") && changes.len() > 100);

    // A row that fails now is worse, whatever the numbers of the rest.
    let mut failing = kept();
    let row = failing.pointer_mut("/reports/0/groups/0/rows/2").expect("a row");
    row["samples"][0] = Value::Null;
    row["failures"] = json!([{"runs": 1, "status": "signal 11", "stderr": ""}]);
    let failing = File::new(&failing);
    let outcome = bench(&["compare", &file.path(), &failing.path()]);
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    assert!(
        outcome.out().contains("\nfailing now\n") && outcome.out().contains("1 of 15 runs: signal 11"),
        "{outcome}"
    );
    let outcome = bench(&["compare", &failing.path(), &file.path()]).good();
    assert!(outcome.out().contains("\nno longer failing\n"), "{outcome}");
}
