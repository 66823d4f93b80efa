//! The host's MPI in the image's programs: every image with every MPI of this host, as it was predicted.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::host_mpi::{self, HostMpi, inode, mapped, mapped_libc};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::run::{Outcome, Run};
use serde_json::Value;

const IMAGES: [&str; 6] = [
    "bullseye-openmpi",
    "bookworm-openmpi",
    "trixie-openmpi",
    "bullseye-mpich",
    "bookworm-mpich",
    "trixie-mpich",
];
/// Programs, and what they are written in.
const PROGRAMS: [(&str, &str); 5] = [
    ("whose", "C"),
    ("ring_mpif", "mpif.h"),
    ("ring_f", "use mpi"),
    ("ring_f08", "mpi_f08"),
    ("ring_cxx", "C++"),
];

/// Runs a shell script that builds something in a directory.
#[track_caller]
fn build(directory: &Path, script: &str) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What `check` predicts, as JSON.
fn predicted(host: &HostMpi, who: Who, image: &Path, options: &[&str], command: &[&str]) -> Value {
    let launcher = match (host.family, host.name.starts_with("Open MPI 5")) {
        ("openmpi", true) => "prrte",
        ("openmpi", false) => "openmpi",
        _ => "hydra",
    };
    let mut arguments = vec!["check", "--json", "--launcher", launcher, "--host-mpi", text(&host.library)];
    arguments.extend(options);
    arguments.push(text(image));
    arguments.extend(command);
    let outcome = Run::launch(who, arguments).run();
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome}"))
}

fn first_reason(told: &Value) -> String {
    let reason = |list: &str| told[list][0].as_object().cloned();
    match reason("reasons") {
        Some(r) => format!("{}: {}", r["code"].as_str().unwrap_or(""), r["what"].as_str().unwrap_or("")),
        None => told["remarks"][0].as_str().unwrap_or("").to_owned(),
    }
}

fn is_right(outcome: &Outcome, program: &str) -> bool {
    match program {
        "whose" => outcome.out().contains("rank 1 of 2"),
        _ => outcome.out().contains("ring of 2 ranks: sum 1 correct"),
    }
}

/// How a cell of the table came out.
struct Cell {
    verdict: String,
    wrong: Option<String>,
    why: String,
}

/// Predicts, runs, and compares.
fn cell(host: &HostMpi, image_name: &str, program: &str, who: Who) -> Option<Cell> {
    let image = host::image(image_name);
    let path = format!("/opt/examples/{program}");
    if !image.join(&path[1..]).exists() {
        return None;
    }
    // With --mpi=host there is only the host's, or a reason.
    let told = predicted(host, who, &image, &["--mpi=host"], &[&path]);
    let verdict = told["verdict"].as_str().expect("a verdict").to_owned();
    let overridden =
        told["remarks"].as_array().is_some_and(|r| r.iter().any(|r| r.to_string().contains("overrides")));
    let options = ["--mpi=host", "--host-mpi", text(&host.library), text(&image), &path];
    let outcome = host.launch(who, 2, &options).run();
    let ran = outcome.code() == Some(0);
    let on_host = {
        let found = mapped(&outcome);
        !found.is_empty() && found.iter().all(|(number, _)| *number == inode(&host.library))
    };
    let right = is_right(&outcome, program);
    let wrong = match (verdict.as_str(), ran && right && on_host) {
        ("inject", true) => None,
        // What is only forced may fail.
        ("inject", false) if overridden => None,
        ("inject", false) => Some(format!("predicted to run, and did not: {outcome}")),
        (_, false) if outcome.code() == Some(125) => None,
        _ => Some(format!("refused by check, and it ran: {outcome}")),
    };
    // Was the refusal right? Whoever puts the host's MPI there by hand sees.
    let asked = if image_name.ends_with("openmpi") { "libmpi.so.40" } else { "libmpich.so.12" };
    let forced = match verdict.as_str() {
        "inject" => None,
        _ if !host::full() => None,
        _ => host.forced(who, text(&image), &path, asked),
    };
    let forced_runs = forced.map(|outcome| {
        let found = mapped(&outcome);
        let on_host = !found.is_empty() && found.iter().all(|(n, _)| *n == inode(&host.library));
        outcome.code() == Some(0) && on_host && is_right(&outcome, program)
    });
    let wrong = match forced_runs {
        Some(true) => Some(format!("refused ({}), and by hand it runs", first_reason(&told))),
        _ => wrong,
    };
    let verdict = match (verdict.as_str(), overridden) {
        (other, _) if forced_runs.is_some() => format!("{other}, fails by hand"),
        ("inject", true) => format!("forced, {}", if ran && right && on_host { "runs" } else { "fails" }),
        (other, _) => other.to_owned(),
    };
    Some(Cell { verdict, wrong, why: first_reason(&told) })
}

/// The whole table, or a sample in which each image meets each MPI.
#[test]
fn matrix() {
    let mut table = String::from(
        "# Images and the host's MPIs\n\n\
         Made by `cargo xtask matrix`. Each cell: what `hpc-launch check --mpi=host` predicts, and then two ranks under\n\
         that MPI's own launcher, as an ordinary user; `inject` means that every rank had that very file of the host\n\
         mapped (by inode, from /proc/self/maps) and that the result was right. `forced, runs` and `forced, fails`:\n\
         a symbol is missing that is looked for only when it is called, so that only `--mpi=host` accepts it. `fails by\n\
         hand`: with LD_LIBRARY_PATH set to that MPI, and no checks, it does not run, or not on that MPI.\n\n",
    );
    let hosts = host_mpi::all();
    let _ = write!(table, "| image | program |");
    for host in &hosts {
        let _ = write!(table, " {} |", host.name);
    }
    let _ = writeln!(table, "\n|---|---|{}", "---|".repeat(hosts.len()));
    let mut wrong = Vec::new();
    let mut why: Vec<String> = Vec::new();
    let mut cells = 0;
    for (i, image) in IMAGES.iter().enumerate() {
        for (p, (program, language)) in PROGRAMS.iter().enumerate() {
            let mut row = format!("| {image} | {language} |");
            let mut any = false;
            for (h, host) in hosts.iter().enumerate() {
                if !host::full() && (p + i + h) % PROGRAMS.len() != 0 {
                    continue;
                }
                let Some(cell) = cell(host, image, program, Who::User) else { continue };
                any = true;
                cells += 1;
                let mut mark = String::new();
                if cell.verdict != "inject" {
                    let lib = host.library.parent().expect("a directory");
                    let reason = cell.why.replace(&format!("{}/", lib.display()), "");
                    let at = why.iter().position(|w| *w == reason).unwrap_or_else(|| {
                        why.push(reason.clone());
                        why.len() - 1
                    });
                    mark = format!(" [{}]", at + 1);
                }
                let _ = write!(row, " {}{mark} |", cell.verdict);
                if let Some(what) = cell.wrong {
                    wrong.push(format!("{image} {language} {}: {what}", host.name));
                }
            }
            if any {
                let _ = writeln!(table, "{row}");
            }
        }
    }
    let _ = writeln!(table, "\n{cells} cells, {} predictions wrong.\n", wrong.len());
    for (i, why) in why.iter().enumerate() {
        let _ = writeln!(table, "{}. {why}", i + 1);
    }
    println!("{table}");
    assert!(cells > 0);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    if let Some(docs) = std::env::var_os("HPC_LAUNCH_MATRIX") {
        fs::write(Path::new(&docs).join("matrix-hosts.md"), table).expect("the table is written");
    }
}

/// Every rank has one libmpi, the host's, and one C library.
fn runs_on_host(host: &HostMpi, who: Who, image: &str, host_libc: bool) -> Outcome {
    let image = host::image(image);
    let outcome = host.launch(who, 4, &[text(&image), "/opt/examples/whose"]).run().good();
    let mpis = mapped(&outcome);
    assert!(!mpis.is_empty(), "{outcome}");
    for (number, path) in &mpis {
        assert_eq!(*number, inode(&host.library), "{path}\n{outcome}");
    }
    let libcs: std::collections::BTreeSet<u64> = mapped_libc(&outcome).iter().map(|(n, _)| *n).collect();
    let ours = fs::canonicalize(format!("/lib/{}-linux-gnu/libc.so.6", std::env::consts::ARCH))
        .expect("this host has a C library");
    assert_eq!(libcs.len(), 1, "one C library: {outcome}");
    assert_eq!(libcs.contains(&inode(&ours)), host_libc, "{outcome}");
    outcome
}

#[test]
fn an_old_image_gets_the_hosts_c_library_and_a_new_one_keeps_its_own() {
    for who in everyone() {
        for host in host_mpi::all().iter().take(2) {
            runs_on_host(host, *who, &format!("bullseye-{}", host.family), true);
            // The same release on both sides: nothing of the C library needs to be the host's.
            runs_on_host(host, *who, &format!("bookworm-{}", host.family), false);
            runs_on_host(host, *who, &format!("trixie-{}", host.family), false);
        }
    }
}

#[test]
fn a_squashfs_image_gets_it_too() {
    for who in everyone() {
        runs_on_host(&host_mpi::all()[0], *who, "trixie-openmpi.sqfs", false);
    }
}

/// Not even root writes to the host's files through what looks like the image's.
#[test]
fn what_is_injected_cannot_be_written_to() {
    let host = &host_mpi::all()[0];
    let image = host::image("bullseye-openmpi");
    let script = "for d in /run/hpc-launch/host/* /usr/lib/*/openmpi /usr/lib/*/libmpi.so.40 /lib/*/libc.so.6; do
            test -e $d || exit 3
            if test -d $d; then : 2>/dev/null > $d/hpcl-test && echo written $d; else : 2>/dev/null >> $d && echo written $d; fi
        done; echo tried; : /opt/examples/whose";
    for who in everyone() {
        let outcome = host.launch(*who, 1, &[text(&image), "bash", "-c", script]).run();
        assert_eq!(outcome.out().trim(), "tried", "{outcome}");
    }
}

/// An image with nothing but a C library, and a program from outside.
#[test]
fn an_image_without_any_mpi_runs_mpi_programs() {
    for host in host_mpi::all() {
        let donor = host::image(&format!("bookworm-{}", host.family));
        let dir = directory("/var/tmp");
        let program = dir.path().join("whose");
        fs::copy(donor.join("opt/examples/whose"), &program).unwrap();
        let bind = format!("{}:/opt/whose:ro", program.display());
        let image = host::image("libc");
        let arguments = ["--bind", &bind, text(&image), "/opt/whose"];
        let outcome = host.launch(Who::User, 2, &arguments).run().good();
        assert!(mapped(&outcome).iter().all(|(n, _)| *n == inode(&host.library)), "{outcome}");
        assert!(outcome.out().contains("rank 1 of 2"), "{outcome}");
    }
}

/// Copies an image's MPI into a directory of a throwaway tree; programs look there by RPATH or RUNPATH.
fn with_own_mpi(flags: &str) -> (tempfile::TempDir, String) {
    let dir = directory("/var/tmp");
    let lib = dir.path().join("lib");
    fs::create_dir(&lib).expect("a directory");
    let donor = host::image("bookworm-openmpi").join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    for name in ["libmpi.so.40", "libopen-rte.so.40", "libopen-pal.so.40"] {
        fs::copy(donor.join(name), lib.join(name)).expect("a copy");
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/whose.c");
    let script = format!(
        "gcc $(mpicc.openmpi --showme:compile) {source} -o whose -L lib -l:libmpi.so.40 {flags} \
         -Wl,--allow-shlib-undefined"
    );
    build(dir.path(), &script);
    let bind = format!("{}:/opt/app:ro", dir.path().display());
    (dir, bind)
}

#[test]
fn a_program_that_looks_for_its_own_mpi_first() {
    let host = &host_mpi::all()[0];
    for flags in [
        "-Wl,--disable-new-dtags,-rpath,/opt/app/lib",
        "-Wl,--enable-new-dtags,-rpath,/opt/app/lib",
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib",
    ] {
        let flags = flags.replace('$', "\\$");
        let (_dir, bind) = with_own_mpi(&flags);
        for who in everyone() {
            let image = host::image("bookworm-openmpi");
            let arguments = ["--bind", &bind, text(&image), "/opt/app/whose"];
            let outcome = host.launch(*who, 2, &arguments).run().good();
            let mpis = mapped(&outcome);
            assert!(
                mpis.iter().all(|(n, _)| *n == inode(&host.library)) && !mpis.is_empty(),
                "{flags} {outcome}"
            );
        }
    }
}

#[test]
fn a_program_that_opens_its_mpi() {
    let host = &host_mpi::all()[0];
    let image = host::image("trixie-openmpi");
    let library = format!("/usr/lib/{}-linux-gnu/libmpi.so.40", std::env::consts::ARCH);
    for who in everyone() {
        // By name, and by the very path in the image.
        for asked in ["libmpi.so.40", &library] {
            let arguments =
                ["--mpi=host", "--mpi-library", &library, text(&image), "/opt/examples/opens", asked];
            let outcome = host.launch(*who, 2, &arguments).run().good();
            let mpis = mapped(&outcome);
            assert!(mpis.iter().all(|(n, _)| *n == inode(&host.library)) && !mpis.is_empty(), "{outcome}");
        }
        let arguments = ["check", "--mpi=host", "--launcher=openmpi", text(&image), "/opt/examples/opens"];
        let outcome = Run::launch(*who, arguments).run();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(
            outcome.out().contains("links no MPI that we can see") && outcome.out().contains("--mpi-library")
        );
    }
}

/// A script that starts a solver, as users have them.
#[test]
fn a_script_and_a_shell_lead_to_the_program() {
    let host = &host_mpi::all()[0];
    let image = host::image("trixie-openmpi");
    let dir = directory("/tmp");
    let script = dir.path().join("run.sh");
    fs::write(&script, "#!/bin/sh\n# starts it\nexec /opt/examples/whose \"$@\"\n").unwrap();
    Command::new("chmod").arg("755").arg(&script).status().unwrap();
    for command in [
        vec![text(&script)],
        vec!["sh", "-c", "exec /opt/examples/whose"],
        vec!["env", "A=b", "/opt/examples/whose"],
    ] {
        let arguments: Vec<&str> = [text(&image)].into_iter().chain(command).collect();
        let outcome = host.launch(Who::User, 2, &arguments).run().good();
        let mpis = mapped(&outcome);
        assert!(mpis.iter().all(|(n, _)| *n == inode(&host.library)) && !mpis.is_empty(), "{outcome}");
    }
}

/// mpi4py in a virtual environment of the image, started as users start it.
#[test]
fn mpi4py_runs_on_the_hosts_mpi() {
    let hosts = host_mpi::all();
    let image = host::image("bookworm-python");
    let dir = directory("/tmp");
    let script = dir.path().join("solver.py");
    let source = "#!/usr/bin/env -S /opt/venv/bin/python3\n\
        from mpi4py import MPI\n\
        world = MPI.COMM_WORLD\n\
        total = world.allreduce(world.rank)\n\
        if world.rank == 0:\n\
        \x20   for line in {' '.join(l.split()[3:]) for l in open('/proc/self/maps') if '/libmpi.so' in l}:\n\
        \x20       print('maps:', line)\n\
        \x20   print('sum', total, 'of', world.size)\n";
    fs::write(&script, source).unwrap();
    Command::new("chmod").arg("755").arg(&script).status().unwrap();
    for who in everyone() {
        for host in hosts.iter().filter(|h| h.family == "openmpi") {
            for command in [vec!["/opt/venv/bin/python3", text(&script)], vec![text(&script)]] {
                let arguments: Vec<&str> = ["--mpi=host", text(&image)].into_iter().chain(command).collect();
                let outcome = host.launch(*who, 3, &arguments).run().good();
                assert!(outcome.out().contains("sum 3 of 3"), "{outcome}");
                let mpis = mapped(&outcome);
                assert!(
                    mpis.iter().all(|(n, _)| *n == inode(&host.library)) && !mpis.is_empty(),
                    "{outcome}"
                );
            }
        }
    }
}

/// A command that only names a program may do something else with it: it is bridged in case it starts it.
#[test]
fn a_program_that_is_only_named_runs() {
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        let arguments = [text(&image), "cat", "/opt/examples/whose"];
        let outcome = Run::hydra(*who, 2, arguments).run().good();
        assert!(outcome.stdout.starts_with(b"\x7fELF"), "{outcome}");
        assert!(outcome.stderr.is_empty(), "{outcome}");
        let script = ["sh", "-c", "exec /opt/examples/ring"];
        Run::hydra(*who, 3, [text(&image)].iter().chain(&script))
            .run()
            .prints("ring of 3 ranks: sum 3 correct");
    }
}

/// `check` in words: code, both sides, cure; quickly.
#[track_caller]
fn refused(options: &[&str], image: &Path, command: &[&str], parts: &[&str]) {
    let arguments: Vec<&str> = ["check"]
        .iter()
        .chain(options)
        .copied()
        .chain([text(image)])
        .chain(command.iter().copied())
        .collect();
    let outcome = Run::launch(Who::User, arguments).run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    let out = outcome.out();
    assert!(out.starts_with("no: it would not run"), "{outcome}");
    for part in parts.iter().chain(&["what to do: "]) {
        assert!(out.contains(part), "{part:?} is missing: {outcome}");
    }
}

#[test]
fn wrong_pairs_are_refused_with_the_evidence_and_a_cure() {
    let hosts = host_mpi::all();
    let [open_mpi, mpich, open_mpi_5, mpich_4] = &hosts[..4] else { panic!("four MPIs") };
    let of = |host: &HostMpi| text(&host.library).to_owned();
    // Another family.
    let image = host::image("trixie-openmpi");
    refused(
        &["--launcher=hydra", "--mpi=host", "--host-mpi", &of(mpich)],
        &image,
        &["/opt/examples/whose"],
        &["[host-mpi-missing]", "Open MPI 5.0.7", "MPICH 4.0.2", "Open MPI's, generation 40"],
    );
    // Bindings that the host's comes without, and that the image's own cannot stand in for.
    refused(
        &["--launcher=prrte", "--mpi=host", "--host-mpi", &of(open_mpi_5)],
        &host::image("bookworm-openmpi"),
        &["/opt/examples/ring_cxx"],
        &["[bindings-missing]", "libmpi_cxx.so.40 (C++ bindings)", "ompi_op_set_cxx_callback"],
    );
    // musl, with its own loader.
    let musl = Throwaway::empty();
    for name in ["bin", "dev", "etc", "lib", "proc", "run", "sys", "tmp"] {
        musl.directory(name);
    }
    let script =
        "echo 'int ompi_mpi_comm_world; int MPI_Init(void) { return 0; } int PMPI_Init(void) { return 0; }' |
          musl-gcc -xc - -shared -fPIC -o lib/libmpi.so.40 -Wl,-soname,libmpi.so.40
        echo 'int MPI_Init(void); int main(void) { return MPI_Init(); }' |
          musl-gcc -xc - -xnone -o bin/solver lib/libmpi.so.40
        cp -L /lib/ld-musl-*.so.1 lib/";
    build(&musl.root(), script);
    refused(
        &["--launcher=openmpi", "--mpi=host"],
        &musl.root(),
        &["/bin/solver"],
        &["[not-injectable]", "/lib/ld-musl-", "built for glibc"],
    );
    // Another machine's.
    let foreign = Throwaway::new();
    let donor = host::image("bookworm-openmpi").join("opt/examples/whose");
    foreign.program("bin/solver", hpc_launch_tests::image::foreign_elf(&donor));
    refused(
        &["--launcher=openmpi", "--mpi=host"],
        &foreign.root(),
        &["/bin/solver"],
        &["[wrong-architecture]", "a program for riscv"],
    );
    // A host MPI that is not there, and one that is none.
    let image = host::image("bookworm-openmpi");
    refused(
        &["--launcher=openmpi", "--host-mpi", "/opt/none/libmpi.so.40"],
        &image,
        &["/opt/examples/whose"],
        &["[host-mpi-missing]", "/opt/none/libmpi.so.40", "there is no such file"],
    );
    let libc = format!("/lib/{}-linux-gnu/libc.so.6", std::env::consts::ARCH);
    refused(
        &["--launcher=openmpi", "--host-mpi", &libc],
        &image,
        &["/opt/examples/whose"],
        &["[host-mpi-missing]", "it is no MPI that we know"],
    );
    refused(
        &["--launcher=openmpi", "--host-mpi", "nobody"],
        &image,
        &["/opt/examples/whose"],
        &["[host-mpi-missing]", "no configuration names an MPI so"],
    );
    let _ = (open_mpi, mpich_4);
}

/// A site names its MPIs; the first that fits is taken, and one that is not there is told with its place.
#[test]
fn the_configuration_names_mpis() {
    let hosts = host_mpi::all();
    let home = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = home.path().join(".config/hpc-launch/config.toml");
    fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
    let write = |library: &str| {
        let text = format!(
            "[[host_mpis]]\nname = 'fast'\nlibrary = '{library}'\n[[host_mpis]]\nname = 'other'\nlibrary = '{}'\n",
            text(&hosts[3].library)
        );
        fs::write(&file, text).expect("written");
        Command::new("chmod").args(["-R", "a+rX"]).arg(home.path()).status().expect("chmod");
    };
    let image = host::image("bookworm-openmpi");
    let check = |options: &[&str]| {
        let arguments = ["check", "--launcher=openmpi"].iter().chain(options).copied();
        let arguments = arguments.chain([text(&image), "/opt/examples/whose"]);
        Run::launch(Who::User, arguments).env("HOME", home.path()).run()
    };
    write(text(&hosts[0].library));
    let outcome = check(&["--host-mpi=fast"]).good();
    assert!(outcome.out().contains("with the host's Open MPI 4.1.4"), "{outcome}");
    let outcome = check(&["--host-mpi=other", "--mpi=host"]);
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    assert!(outcome.out().contains("MPICH 4.3.2"), "{outcome}");
    write("/opt/none/libmpi.so.40");
    let outcome = check(&[]);
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    for part in [
        "[host-mpi-missing] /opt/none/libmpi.so.40",
        "host_mpis, \"fast\", in ",
        "config.toml",
        "no such file",
    ] {
        assert!(outcome.out().contains(part), "{part}: {outcome}");
    }
}

/// `libmpi.so.12` is two families: here is Open MPI's, of 1.10, as far as its exports go.
#[test]
fn the_same_soname_of_another_family_is_told_apart() {
    let image = Throwaway::new();
    let script = "echo 'struct c { int a; } ompi_mpi_comm_world, ompi_mpi_int; int MPI_Init(void) { return 0; }
           int PMPI_Init(void) { return 0; } int MPI_Finalize(void) { return 0; }' |
             gcc -xc - -shared -fPIC -o lib/libmpi.so.12 -Wl,-soname,libmpi.so.12
         echo 'extern struct c { int a; } ompi_mpi_comm_world; int MPI_Init(void);
           int main(void) { return MPI_Init() + ompi_mpi_comm_world.a; }' | gcc -xc - -xnone -o bin/p lib/libmpi.so.12";
    build(&image.root(), script);
    let mpich = &host_mpi::all()[3];
    refused(
        &["--launcher=hydra", "--mpi=host", "--host-mpi", text(&mpich.library)],
        &image.root(),
        &["/bin/p"],
        &["[host-mpi-missing]", "Open MPI", "generation 12", "MPICH 4.3.2"],
    );
    // And without it in the image: the variables that the program wants tell.
    image.remove("lib/libmpi.so.12");
    refused(
        &["--launcher=hydra", "--mpi=host", "--host-mpi", text(&mpich.library)],
        &image.root(),
        &["/bin/p"],
        &["[host-mpi-missing]", "libmpi.so.12, which the image lacks", "generation 12"],
    );
}

#[test]
fn a_program_with_its_mpi_inside_is_told_so() {
    let dir = directory("/var/tmp");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.c");
    let script = format!(
        "lib=$(echo /usr/lib/*/libmpich.a)
         gcc -I$(dirname $lib | sed s/lib/include/)/mpich {source} -o hello $lib -l:libucp.so.0 -l:libucs.so.0 \
             -l:libhwloc.so.15 -lm -lpthread -lrt"
    );
    build(dir.path(), &script);
    let bind = format!("{}:/opt/app:ro", dir.path().display());
    let image = host::image("bookworm-mpich");
    refused(
        &["--launcher=hydra", "--mpi=host", "--bind", &bind],
        &image,
        &["/opt/app/hello"],
        &["[not-injectable]", "/opt/app/hello is statically linked"],
    );
    // Its own MPI is known, and so whether it fits.
    let arguments = ["check", "--launcher=openmpi", "--bind", &bind, text(&image), "/opt/app/hello"];
    let outcome = Run::launch(Who::User, arguments).run().good();
    for part in ["MPICH", "speaks only PMI-1/PMI-2", "bridged by a helper"] {
        assert!(outcome.out().contains(part), "{part}: {outcome}");
    }
    let arguments = ["check", "--launcher=hydra", "--bind", &bind, text(&image), "/opt/app/hello"];
    let outcome = Run::launch(Who::User, arguments).run();
    assert_eq!(outcome.code(), Some(0), "{outcome}");
}

/// What is only looked for when it is called may never be: refused unless the user insists, and then said.
#[test]
fn who_insists_on_the_hosts_mpi_is_told_what_is_missing() {
    let image = Throwaway::new();
    let donor = host::image("bookworm-openmpi").join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    image.file("lib/libmpi.so.40", fs::read(donor.join("libmpi.so.40")).unwrap());
    let script = "echo 'int nowhere(void); int call(void) { return nowhere(); }' |
             gcc -xc - -shared -fPIC -o lib/libglue.so -Wl,-soname,libglue.so -Wl,-z,lazy
         echo 'int MPI_Init(void*,void*); int MPI_Finalize(void); int call(void);
           int main(int c, char **v) { MPI_Init(0, 0); if (c > 1) call(); return MPI_Finalize(); }' |
             gcc -xc - -xnone -o bin/p -l:libmpi.so.40 lib/libglue.so -Wl,-z,lazy -Wl,--allow-shlib-undefined";
    build(&image.root(), script);
    // Missing in the image too: no fault of the host's MPI, and no obstacle.
    let host = &host_mpi::all()[0];
    let told = predicted(host, Who::User, &image.root(), &[], &["/bin/p"]);
    assert_eq!(told["verdict"], "inject", "{told:#}");
}

#[test]
fn the_plan_shows_every_file_and_says_why() {
    let host = &host_mpi::all()[0];
    let image = host::image("bullseye-openmpi");
    let plan = |json: bool| {
        let mut arguments = vec!["plan"];
        arguments.extend(json.then_some("--json"));
        arguments.extend([text(&image), "/opt/examples/whose"]);
        host.launch(Who::User, 1, &arguments).run().good()
    };
    let told: Value = serde_json::from_slice(&plan(true).stdout).expect("JSON");
    assert_eq!(told["mpi"]["verdict"], "inject");
    let steps = told["steps"].as_array().expect("steps");
    let links = steps.iter().find(|s| s["do"] == "links").expect("links");
    let names: Vec<&str> =
        links["links"].as_array().unwrap().iter().filter_map(|l| l["name"].as_str()).collect();
    for name in ["libmpi.so.40", "libopen-pal.so.40", "libpmix.so.2", "libmpi_mpifh.so.40", "ucx"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let binds: Vec<&str> = steps.iter().filter_map(|s| s["at"].as_str()).collect();
    assert!(binds.iter().any(|b| b.ends_with("/libc-2.31.so")), "{binds:?}");
    assert!(binds.iter().any(|b| b.ends_with("/ld-2.31.so")), "{binds:?}");
    let out = plan(false).out();
    assert!(out.contains("MPI        the host's: Open MPI 4.1.4"), "{out}");
    assert!(out.contains("set        LD_LIBRARY_PATH=/run/hpc-launch/lib"), "{out}");
}

/// What is injected, by its bytes: written down, found again, and told where another site differs.
#[test]
fn a_lock_compares_two_sites() {
    let host = &host_mpi::all()[0];
    let image = host::image("bullseye-openmpi");
    for who in everyone() {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        Command::new("chmod").arg("777").arg(dir.path()).status().expect("chmod");
        let file = dir.path().join("lock.json");
        let plan = |option: &str| {
            host.launch(*who, 1, &["plan", option, text(&file), text(&image), "/opt/examples/whose"]).run()
        };
        let outcome = plan("--lock").good();
        assert!(outcome.out().contains(" files of the host, in "), "{outcome}");
        let mut lock: Value = serde_json::from_slice(&fs::read(&file).expect("a lock")).expect("JSON");
        let name = "/run/hpc-launch/lib/libmpi.so.40";
        let locked = &lock["files"][name];
        assert_eq!(locked["source"], text(&host.library), "{lock:#}");
        let sum = Command::new("sha256sum").arg(&host.library).output().expect("sha256sum").stdout;
        let sum = String::from_utf8_lossy(&sum).into_owned();
        assert_eq!(locked["sha256"].as_str(), sum.split(' ').next());
        let files = lock["files"].as_object().expect("files").len();
        assert!(files > 150, "plugins too: {files}");

        plan("--diff").good().prints("the same files as there");
        lock["files"][name]["sha256"] = "00".repeat(32).into();
        fs::write(&file, lock.to_string()).expect("written");
        let outcome = plan("--diff");
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        let told: Vec<String> =
            outcome.out().lines().filter(|l| l.starts_with('/')).map(String::from).collect();
        assert_eq!(told.len(), 1, "{outcome}");
        assert!(told[0].starts_with(&format!("{name}: here {}", text(&host.library))), "{outcome}");
        fs::write(&file, "{}").expect("written");
        let outcome = plan("--diff");
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!((outcome.err() + &outcome.out()).contains("lock.json is no lock"), "{outcome}");
    }
}

/// Only the first rank of a node looks at libraries, and with a decision that was kept nobody does.
#[test]
fn a_decision_is_kept_until_a_file_changes() {
    let image = Throwaway::new();
    let donor = host::image("bookworm-openmpi").join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let triple = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    image.file(format!("{triple}/libmpi.so.40"), fs::read(donor.join("libmpi.so.40")).unwrap());
    let script = "echo 'int MPI_Init(void*,void*); int main(void) { return MPI_Init == 0; }' |
        gcc -xc - -xnone -o bin/p -Wl,--no-as-needed -l:libmpi.so.40";
    build(&image.root(), script);
    let kept = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = image.root();
    // Reads of ELF files by the launcher itself: before the program is executed.
    let reads = || {
        let trace = kept.path().join("trace");
        let command = ["strace", "-f", "-e", "trace=pread64,execve", "-o", text(&trace)];
        let mut run = Run::command(Who::Root, command).args([host::launcher()]).args([text(&root), "/bin/p"]);
        for (name, value) in [
            ("PMIX_NAMESPACE", "a"),
            ("PMIX_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_MCA_orte_local_daemon_uri", "x"),
        ] {
            run = run.env(name, value);
        }
        let decisions = kept.path().join("decisions");
        run.env("HPC_LAUNCH_DECISIONS", &decisions).run().good();
        let text = fs::read_to_string(&trace).unwrap();
        text.lines()
            .take_while(|l| !l.contains("execve(\"/bin/p\""))
            .filter(|l| l.contains("pread64"))
            .count()
    };
    if !host::is_root() {
        return;
    }
    assert!(reads() > 100, "the first look reads");
    assert_eq!(reads(), 0, "nothing has changed");
    // Bytes changed, size and mtime restored: the ctime tells.
    let library = image.at(format!("{triple}/libmpi.so.40"));
    let before = fs::metadata(&library).unwrap();
    let mut bytes = fs::read(&library).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&library, &bytes).unwrap();
    let file = fs::File::options().write(true).open(&library).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    drop(file);
    let after = fs::metadata(&library).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert!(reads() > 100, "a file has changed");
    assert_eq!(reads(), 0, "and is known now");
    // A library that was not there, in a place where the loader looks earlier.
    image.directory("lib/glibc-hwcaps");
    fs::copy(&library, image.at("lib/libopen-rte.so.40")).unwrap();
    assert!(reads() > 100, "a directory has changed");
    // A name that leads elsewhere now.
    assert_eq!(reads(), 0);
    fs::rename(&library, image.at(format!("{triple}/other"))).unwrap();
    std::os::unix::fs::symlink("other", &library).unwrap();
    assert!(reads() > 100, "a link has come");
    // A decision of somebody else's is not believed.
    fs::set_permissions(kept.path().join("decisions"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    assert!(reads() > 100, "the directory is open to others");
}
