//! Hostile images: a clear refusal or correct behaviour, never a path of the host touched, never a
//! hang, nothing left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpc_launch_tests::canary::{Canary, SONG, assert_same, mounts, record};
use hpc_launch_tests::host::{self, Who, everyone, is_root, launcher};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::run::{Outcome, Run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What should come of a row.
enum Expected {
    /// The program runs, and sees the host's /etc/passwd, /dev, /proc and /tmp.
    Runs,
    /// The program runs; some of the host's files cannot be shown.
    RunsWithout,
    /// Either of the two.
    RunsOrRefused(&'static str),
    /// A refusal with this code, whose message holds this.
    Refused(&'static str, &'static str),
}

use Expected::{Refused, Runs, RunsOrRefused, RunsWithout};

/// A hostile image: how it differs from an ordinary one. The second argument is the canary's path.
type Row = (&'static str, fn(&Throwaway, &Path), Expected);

/// What an image can name of the host: by an absolute path, through /proc, by climbing.
fn escape(image: &Throwaway, name: &str, target: impl AsRef<Path>) {
    image.link(target, name);
}

fn through_proc(canary: &Path) -> PathBuf {
    let mut path = OsString::from("/proc/self/root");
    path.push(canary);
    path.into()
}

fn climbing(canary: &Path) -> PathBuf {
    let mut path = OsString::from("../../../../../../../../../../../..");
    path.push(canary);
    path.into()
}

const ROWS: &[Row] = &[
    ("etc by its absolute path", |i, c| escape(i, "etc", c.join("etc")), Runs),
    ("etc through proc", |i, c| escape(i, "etc", through_proc(c).join("etc")), Runs),
    (
        "etc through the first process",
        |i, c| escape(i, "etc", Path::new("/proc/1/root").join(c.strip_prefix("/").unwrap()).join("etc")),
        RunsWithout,
    ),
    ("etc by climbing", |i, c| escape(i, "etc", climbing(c).join("etc")), Runs),
    ("etc is the root's etc", |i, _| escape(i, "etc", "/proc/self/root/etc"), RunsWithout),
    ("etc is the working directory of a process", |i, _| escape(i, "etc", "/proc/self/cwd"), RunsWithout),
    ("etc is the root", |i, _| escape(i, "etc", "/"), Runs),
    ("etc is tmp", |i, _| escape(i, "etc", "/tmp"), RunsWithout),
    ("etc is dev/shm", |i, _| escape(i, "etc", "/dev/shm"), RunsWithout),
    ("etc is run", |i, _| escape(i, "etc", "run"), Runs),
    ("etc is a loop", |i, _| escape(i, "etc", "etc"), RunsWithout),
    (
        "etc is a file",
        |i, _| {
            i.file("etc", "x");
        },
        RunsWithout,
    ),
    (
        "etc is a FIFO",
        |i, _| {
            i.fifo("etc");
        },
        RunsWithout,
    ),
    ("etc/passwd by its absolute path", |i, c| escape(i, "etc/passwd", c.join("etc/passwd")), Runs),
    ("etc/passwd by climbing", |i, c| escape(i, "etc/passwd", climbing(c).join("etc/passwd")), Runs),
    (
        "etc/passwd is a FIFO",
        |i, _| {
            i.fifo("etc/passwd");
        },
        Runs,
    ),
    (
        "etc/passwd is a directory",
        |i, _| {
            i.directory("etc/passwd");
        },
        RunsWithout,
    ),
    (
        "etc/passwd is a loop",
        |i, _| {
            i.link("group", "etc/passwd").link("passwd", "etc/group");
        },
        RunsWithout,
    ),
    (
        "etc/passwd is etc/hosts",
        |i, _| {
            i.file("etc/hosts", "").link("hosts", "etc/passwd");
        },
        RunsWithout,
    ),
    ("etc/passwd is a device of the host", |i, _| escape(i, "etc/passwd", "/dev/null"), RunsWithout),
    ("tmp by its absolute path", |i, c| escape(i, "tmp", c.join("tmp")), Runs),
    ("tmp through proc", |i, c| escape(i, "tmp", through_proc(c).join("tmp")), Runs),
    ("tmp by climbing", |i, c| escape(i, "tmp", climbing(c).join("tmp")), Runs),
    (
        "tmp is the root",
        |i, _| escape(i, "tmp", "../../.."),
        Refused("image-layout", "it leads to the root itself"),
    ),
    ("tmp is a loop", |i, _| escape(i, "tmp", "/tmp"), Refused("image-layout", "/tmp")),
    (
        "tmp is a file",
        |i, _| {
            i.file("tmp", "");
        },
        Refused("image-layout", "/tmp is a regular file inside"),
    ),
    ("tmp is dev", |i, _| escape(i, "tmp", "dev"), Refused("image-layout", "/tmp")),
    ("dev by its absolute path", |i, c| escape(i, "dev", c.join("dev")), Runs),
    ("dev by climbing", |i, c| escape(i, "dev", climbing(c).join("dev")), Runs),
    ("dev through proc", |i, c| escape(i, "dev", through_proc(c).join("dev")), RunsOrRefused("image-layout")),
    (
        "dev is a FIFO",
        |i, _| {
            i.fifo("dev");
        },
        Refused("image-layout", "/dev is a device, FIFO or socket inside"),
    ),
    ("dev is the root", |i, _| escape(i, "dev", "."), Refused("image-layout", "it leads to the root itself")),
    (
        "dev has what the host's has",
        |i, _| {
            i.file("dev/null", "x").directory("dev/shm/x").link("/etc", "dev/fd");
        },
        Runs,
    ),
    ("run by its absolute path", |i, c| escape(i, "run", c.join("run")), Runs),
    ("run through proc", |i, c| escape(i, "run", through_proc(c).join("run")), Runs),
    ("run by climbing", |i, c| escape(i, "run", climbing(c).join("run")), Runs),
    ("run is the root", |i, _| escape(i, "run", "/"), Refused("image-layout", "the root itself")),
    (
        "run is a file",
        |i, _| {
            i.file("run", "");
        },
        Refused("image-layout", "/run leads to /run, which is a regular file"),
    ),
    (
        "run is a loop",
        |i, _| {
            i.link("a", "run").link("run", "a");
        },
        Refused("image-layout", "/run"),
    ),
    (
        "run holds links",
        |i, c| {
            i.link(c.join("run/munge"), "run/munge").link("/", "run/hpc-launch");
        },
        Runs,
    ),
    ("home by its absolute path", |i, c| escape(i, "home", c.join("home")), Runs),
    ("home by climbing", |i, c| escape(i, "home", climbing(c).join("home")), Runs),
    (
        "home is a file",
        |i, _| {
            i.file("home", "");
        },
        RunsWithout,
    ),
    ("proc by its absolute path", |i, c| escape(i, "proc", c.join("proc")), Runs),
    (
        "proc is the root",
        |i, _| escape(i, "proc", "/"),
        Refused("image-layout", "it leads to the root itself"),
    ),
    (
        "proc is a file",
        |i, _| {
            i.file("proc", "");
        },
        Refused("image-layout", "/proc is a regular file inside"),
    ),
    ("sys by climbing", |i, c| escape(i, "sys", climbing(c).join("sys")), Runs),
    (
        "lib64 by its absolute path",
        |i, c| escape(i, "lib64", c.join("lib64")),
        Refused("interpreter-missing", "ld-linux"),
    ),
    (
        "lib64 through proc",
        |i, c| escape(i, "lib64", through_proc(c).join("lib64")),
        Refused("interpreter-missing", "ld-linux"),
    ),
    (
        "lib64 is the host's",
        |i, _| escape(i, "lib64", "/proc/self/root/lib64"),
        Refused("program-not-executable", "cannot be looked at"),
    ),
    (
        "lib64 is the first process's",
        |i, _| escape(i, "lib64", "/proc/1/root/lib64"),
        Refused("program-not-executable", "cannot be looked at"),
    ),
    (
        "lib64 climbs to itself",
        |i, _| escape(i, "lib64", "../../../../lib64"),
        Refused("program-not-executable", "cannot be looked at"),
    ),
    (
        "the shell is missing",
        |i, _| {
            i.remove("bin/sh");
        },
        Refused("program-not-found", "/bin/sh"),
    ),
    ("the shell is a loop", |i, _| escape(i, "bin/sh", "sh"), Refused("program-not-found", "/bin/sh")),
    (
        "the shell is the host's",
        |i, _| escape(i, "bin/sh", "/proc/self/root/bin/sh"),
        Refused("program-not-found", "/bin/sh"),
    ),
    (
        "the shell is the canary's",
        |i, c| escape(i, "bin/sh", c.join("bin/sh")),
        Refused("program-not-found", "/bin/sh"),
    ),
    (
        "the shell is the first process's",
        |i, _| escape(i, "bin/sh", "/proc/1/exe"),
        Refused("program-not-found", "/bin/sh"),
    ),
    (
        "the shell is a directory",
        |i, _| {
            i.remove("bin/sh").directory("bin/sh");
        },
        Refused("program-not-executable", "a directory"),
    ),
    (
        "the shell is a FIFO",
        |i, _| {
            i.fifo("bin/sh");
        },
        Refused("program-not-executable", "a device, FIFO or socket"),
    ),
    ("a chain of links as long as the kernel follows", |i, _| chain(i, 38), Runs),
    ("a chain of links that is longer", |i, _| chain(i, 3000), Refused("program-not-found", "/bin/sh")),
    ("a farm of links in etc", |i, c| farm(i, "etc", c), Runs),
    (
        "a farm of links at the root",
        |i, c| {
            farm(i, "", c);
            i.remove("home");
        },
        Runs,
    ),
    ("every file a relative link", |i, _| relinked(i, "../../store"), Runs),
    ("every file an absolute link", |i, _| relinked(i, "/store"), Runs),
    (
        "a link with a target of 4095 bytes",
        |i, c| escape(i, "etc", format!("{}{}", "/.".repeat(2000), text(c))),
        Runs,
    ),
    ("names that look like syntax", |i, _| odd_names(i), Runs),
    (
        "an environment that is a FIFO",
        |i, _| {
            i.directory(".singularity.d/env").fifo(".singularity.d/env/1.sh");
        },
        Refused("image-layout", "1.sh"),
    ),
    (
        "an environment that is a loop",
        |i, _| {
            i.link("env", ".singularity.d");
            i.remove(".singularity.d").directory(".singularity.d").link("env", ".singularity.d/env");
        },
        Refused("image-layout", "/.singularity.d/env"),
    ),
    (
        "an environment of the canary",
        |i, c| {
            i.directory("ch").link(c.join("file"), "ch/environment");
        },
        Runs,
    ),
    (
        "an environment that is not text",
        |i, _| environment(i, &(0..=255).cycle().take(500_000).collect::<Vec<u8>>()),
        Runs,
    ),
    ("an environment of one line", |i, _| environment(i, "A".repeat(1_000_000).as_bytes()), Runs),
    (
        "an environment nested deeply",
        |i, _| environment(i, format!("A={}x{}\n", "${A:-".repeat(50_000), "}".repeat(50_000)).as_bytes()),
        Runs,
    ),
    (
        "an environment of commands",
        |i, _| {
            environment(
                i,
                b"A=$(touch /tmp/hpcl-hostile)\n`touch /tmp/hpcl-hostile`\ntouch /tmp/hpcl-hostile\n",
            )
        },
        Runs,
    ),
    (
        "an environment that names another rank",
        |i, _| environment(i, b"export PMI_RANK=7 \nexport PMIX_RANK=7\n"),
        Runs,
    ),
    (
        "a cache of libraries that lies",
        |i, _| {
            i.file("etc/ld.so.cache", lying_cache());
        },
        Runs,
    ),
    (
        "a cache of libraries without an end",
        |i, _| {
            i.link("/dev/zero", "etc/ld.so.cache");
        },
        RunsWithout,
    ),
    (
        "a cache of libraries of 4 GiB",
        |i, _| {
            i.file("etc/ld.so.cache", b"glibc-ld.so.cache1.1");
            grow(&i.at("etc/ld.so.cache"), 4 << 30);
        },
        RunsWithout,
    ),
    (
        "no directory at all but bin and lib",
        |i, _| {
            for d in ["dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
                i.remove(d);
            }
        },
        Runs,
    ),
];

fn chain(image: &Throwaway, length: usize) {
    image.directory("chain").remove("bin/sh");
    for i in 1..length {
        image.link(format!("{i}"), format!("chain/{}", i - 1));
    }
    image.link("/bin/dash", format!("chain/{}", length - 1)).link("/chain/0", "bin/sh");
}

fn farm(image: &Throwaway, at: &str, canary: &Path) {
    for i in 0..2000 {
        let target = if i % 2 == 0 { canary.join("etc/passwd") } else { climbing(canary) };
        symlink(target, image.at(at).join(format!("link{i}"))).unwrap();
    }
}

/// As package managers with a store lay out their trees.
fn relinked(image: &Throwaway, store: &str) {
    image.directory("store");
    for (d, dir) in ["bin", "lib64"].into_iter().enumerate() {
        let depth = if store.starts_with('/') { store.to_owned() } else { store.replacen("../", "", 1) };
        for (e, entry) in fs::read_dir(image.at(dir)).unwrap().collect::<Vec<_>>().into_iter().enumerate() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                continue;
            }
            let name = format!("{d}.{e}");
            fs::rename(&path, image.at("store").join(&name)).unwrap();
            symlink(format!("{depth}/{name}"), &path).unwrap();
        }
    }
}

const ODD: &[&[u8]] =
    &[b"a\nb", b"c d", b"e:f", b"g,h", b"i\\j", b"k\\054l", b"\xff\xfe", b"'\"$(kill $$)`", b"lowerdir=x"];

fn odd_names(image: &Throwaway) {
    for name in ODD {
        let name = OsStr::from_bytes(name);
        // Beside mount points that are missing, so that they are laid out anew with the rest.
        image.directory(Path::new("etc").join(name)).file(Path::new("").join(name), "x");
    }
    image.remove("home").remove("var");
}

fn environment(image: &Throwaway, contents: &[u8]) {
    image.directory(".singularity.d/env").file(".singularity.d/env/1.sh", contents);
}

/// The right magic, and more entries than there are bytes.
fn lying_cache() -> Vec<u8> {
    let mut bytes = b"glibc-ld.so.cache1.1".to_vec();
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend([0xff; 200]);
    bytes
}

fn grow(path: &Path, size: u64) {
    fs::File::options().append(true).open(path).unwrap().set_len(size).unwrap();
}

/// What a program of a row says if all is well: the host's user database by its first line.
const LOOK: &str = "read line </etc/passwd; echo \"$line\"; test -c /dev/null && test -e /proc/self/status && test -d /tmp && echo ran; \
                    cat /etc/passwd /etc/hosts /bin/sh.x /run/munge/x /tmp/x 2>/dev/null | wc -c >/dev/null; \
                    for f in /etc/[!l]* /run/* /home/* /run/munge/*; do test -f \"$f\" && test -r \"$f\" && case $(head -c 512 \"$f\") in *CANARY*) echo \"heard in $f\";; esac; done; true";

fn judge(name: &str, who: Who, outcome: &Outcome, expected: &Expected) {
    // Root may follow /proc/1/root as on the bare host: the container is no jail.
    let may_follow = who == Who::Root && name.contains("the first process");
    let heard = outcome.out().contains("heard") && !may_follow;
    assert!(!heard, "{name}, {who:?}: the host's file was read\n{outcome}");
    match expected {
        RunsOrRefused(code) if outcome.code() != Some(0) => {
            assert_eq!(outcome.refusal().as_deref(), Some(*code), "{name}, {who:?}: {outcome}");
        }
        Runs | RunsWithout | RunsOrRefused(_) => {
            assert_eq!(outcome.code(), Some(0), "{name}, {who:?}: {outcome}");
            assert!(outcome.out().lines().any(|l| l == "ran"), "{name}, {who:?}: {outcome}");
            let passwd = fs::read_to_string("/etc/passwd").unwrap();
            let sees = outcome.out().lines().next() == passwd.lines().next();
            assert!(
                sees || matches!(expected, RunsWithout),
                "{name}, {who:?}: not the host's users\n{outcome}"
            );
        }
        Refused(code, part) => {
            assert_eq!(outcome.refusal().as_deref(), Some(*code), "{name}, {who:?}: {outcome}");
            let message = outcome.err();
            assert!(message.contains(part) && message.contains("what to do: "), "{name}, {who:?}: {outcome}");
            let status = if code.starts_with("image") {
                125
            } else if *code == "program-not-found" {
                127
            } else {
                126
            };
            assert_eq!(outcome.code(), Some(status), "{name}, {who:?}: {outcome}");
            assert!(outcome.stdout.is_empty(), "{name}, {who:?}: {outcome}");
        }
    }
}

#[test]
fn every_row_of_the_table_behaves_and_touches_nothing() {
    let look = LOOK.replace("CANARY", SONG);
    let canary = Canary::new();
    let control = Throwaway::new();
    control.file("etc/control", format!("first line\n{SONG}\n"));
    let heard = Run::launch(Who::Root, [text(&control.root()), "/bin/sh", "-c", &look]).run();
    assert!(heard.out().contains("heard in /etc/control"), "a song in a file is not heard: {heard}");
    let mut wrong = Vec::new();
    for (name, make, expected) in ROWS {
        let image = Throwaway::new();
        make(&image, canary.path());
        let before = record(&image.root());
        let root = image.root();
        for who in everyone() {
            for options in [&[][..], &["--writable-tmpfs"]] {
                let result = std::panic::catch_unwind(|| {
                    let run = Run::launch(*who, options).args([text(&root), "/bin/sh", "-c", &look]);
                    let outcome = run.limit(Duration::from_secs(20)).run();
                    judge(name, *who, &outcome, expected);
                    // The plan says the same.
                    let plan = Run::launch(*who, ["plan"]).args(options).args([text(&root), "/bin/sh"]).run();
                    assert_eq!(plan.refusal(), outcome.refusal(), "{name}, {who:?}: {plan}");
                });
                if result.is_err() {
                    wrong.push(format!("{name} ({who:?}, {options:?})"));
                }
                canary.check(name);
                assert_same(&before, &record(&root), name);
            }
        }
        assert!(!Path::new("/tmp/hpcl-hostile").exists(), "{name}: a command of the image was run");
    }
    assert!(ROWS.len() >= 25);
    assert!(wrong.is_empty(), "rows that do not behave: {wrong:#?}");
}

/// Mount points missing in a directory with very many entries.
#[test]
fn a_directory_without_an_end() {
    let image = Throwaway::new();
    let entries = if host::full() { 1_000_000 } else { 200_000 };
    image.remove("home").directory("etc/x");
    for i in 0..entries {
        fs::File::create(image.at("etc").join(format!("entry-{i}"))).unwrap();
    }
    let canary = Canary::new();
    for who in everyone() {
        let script = "read line </etc/passwd && test -e /etc/entry-77 && echo ran";
        let start = Instant::now();
        let outcome = Run::launch(*who, [text(&image.root()), "sh", "-c", script]).run();
        outcome.prints("ran");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    // The same at the root.
    fs::rename(image.at("etc"), image.at("wide")).unwrap();
    let root = image.at("wide");
    for name in ["bin", "lib", "lib64"] {
        fs::rename(image.at(name), root.join(name)).unwrap();
    }
    for who in everyone() {
        let script = "read line </etc/passwd && test -e /entry-77 && echo ran";
        Run::launch(*who, [text(&root), "sh", "-c", script]).run().prints("ran");
    }
    canary.check("a wide directory");
}

#[test]
fn device_nodes_of_an_image_are_dead() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    image.directory("opt");
    let node = |path: &str, kind: &str, major: &str, minor: &str| {
        Run::command(Who::Root, ["mknod", "-m", "0666", text(&image.at(path)), kind, major, minor])
            .run()
            .good();
    };
    node("opt/null", "c", "1", "3");
    node("opt/mem", "c", "1", "1");
    node("etc/passwd", "c", "1", "5");
    node("etc/ld.so.cache", "c", "1", "5");
    // The root disk, as it would be named by who knows its numbers.
    node("opt/disk", "b", "254", "0");
    node("bin/device", "c", "1", "3");
    let file = image.squash();
    for who in everyone() {
        for root in [image.root(), file.clone()] {
            for device in ["/opt/null", "/opt/mem", "/opt/disk"] {
                let outcome = Run::launch(*who, [text(&root), "cat", device]).run();
                assert_eq!(outcome.code(), Some(1), "{outcome}");
                outcome.says(&["Permission denied"]);
            }
            let outcome =
                Run::launch(*who, [text(&root), "sh", "-c", "read line </etc/passwd; echo \"${line%%:*}\""])
                    .run();
            outcome.prints("root");
            let outcome = Run::launch(*who, [text(&root), "/bin/device"]).run();
            outcome.refused("program-not-executable", &["a device, FIFO or socket"]);
        }
    }
}

/// Neither an image's set-user-id program nor one with file capabilities gives anybody anything.
#[test]
fn no_program_of_an_image_has_more_rights_than_the_user() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    fs::copy(image.at("bin/cat"), image.at("bin/suid")).unwrap();
    image.mode("bin/suid", 0o4755);
    let secret = directory("/var/tmp");
    let file = secret.path().join("secret");
    fs::write(&file, SONG).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let bind = format!("{}:/opt", secret.path().display());
    let outcome = Run::launch(Who::User, ["--bind", &bind, text(&image.root()), "suid", "/opt/secret"]).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    outcome.says(&["Permission denied"]);
    Run::launch(Who::Root, ["--bind", &bind, text(&image.root()), "suid", "/opt/secret"]).run().prints(SONG);
}

#[test]
fn odd_names_of_images_homes_and_binds() {
    let canary = Canary::new();
    let image = Throwaway::new();
    for name in ODD {
        let root = image.beside().join(OsStr::from_bytes(name));
        fs::rename(image.root(), &root).unwrap();
        let home = directory("/var/tmp");
        let home = home.path().join(OsStr::from_bytes(name));
        fs::create_dir(&home).unwrap();
        fs::write(home.join("mine"), "mine").unwrap();
        let mut target = OsString::from("/mnt/");
        target.push(OsStr::from_bytes(name));
        for who in everyone() {
            let run = Run::launch(
                *who,
                [root.as_os_str(), "sh".as_ref(), "-c".as_ref(), "cat \"$HOME\"/mine mine".as_ref()],
            );
            run.env("HOME", &home).cwd(&home).run().prints("minemine");
            // A bind's parts are separated by colons, and its text is configuration, which is UTF-8.
            let mut bind = home.clone().into_os_string().into_vec();
            bind.push(b':');
            bind.extend(target.as_bytes());
            let bind = OsString::from_vec(bind);
            let look = OsStr::new("cat \"$0\"/mine");
            let arguments = [
                "--bind".as_ref(),
                bind.as_os_str(),
                root.as_os_str(),
                "sh".as_ref(),
                "-c".as_ref(),
                look,
                &target,
            ];
            let outcome = Run::launch(*who, arguments).run();
            match name {
                _ if name.contains(&b':') => drop(outcome.refused("usage", &["bind "])),
                [0xff, ..] => drop(outcome.refused("config-invalid", &["--bind: ", "is not UTF-8"])),
                _ => drop(outcome.prints("mine")),
            }
        }
        fs::rename(&root, image.root()).unwrap();
    }
    canary.check("odd names");
    assert!(!Path::new("/tmp/hpcl-hostile").exists());
}

#[test]
fn paths_as_long_as_they_get() {
    let image = Throwaway::new();
    let root = image.root();
    let deep = "d/".repeat(2030);
    let name = "n".repeat(255);
    for who in everyone() {
        let run = |arguments: &[&str]| Run::launch(*who, arguments).run();
        let outcome = run(&[text(&root), &format!("/{}", "x/".repeat(4000))]);
        assert_eq!(outcome.refusal().as_deref(), Some("program-not-found"), "{outcome}");
        let outcome = run(&[text(&root), &"x".repeat(5000)]);
        assert_eq!(outcome.refusal().as_deref(), Some("program-not-found"), "{outcome}");
        let outcome = run(&[&format!("/{}", "x/".repeat(4000)), "true"]);
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(outcome.refusal().unwrap().starts_with("image-"), "{outcome}");
        run(&[
            "--bind",
            &format!("/var/tmp:/mnt/{name}"),
            text(&root),
            "sh",
            "-c",
            "test -d /mnt/n* && echo there",
        ])
        .prints("there");
        let outcome = run(&["--bind", &format!("/var/tmp:/mnt/{name}n"), text(&root), "true"]);
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(outcome.err().contains("what to do: "), "{outcome}");
        let outcome = run(&["--bind", &format!("/var/tmp:/mnt/{deep}{deep}"), text(&root), "true"]);
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(outcome.err().contains("what to do: "), "{outcome}");
    }
}

/// Binds whose target leads through links of the image land inside, or are refused.
#[test]
fn targets_of_binds_stay_inside() {
    let canary = Canary::new();
    let image = Throwaway::new();
    let c = canary.path();
    image
        .link(c.join("tmp"), "absolute")
        .link(through_proc(c).join("tmp"), "proc-link")
        .link(climbing(c).join("tmp"), "climbing");
    image.link("/proc/self/cwd", "cwd").link("/proc/1/root", "one");
    let host = directory("/var/tmp");
    fs::write(host.path().join("file"), "bound").unwrap();
    for who in everyone() {
        for link in ["absolute", "proc-link", "climbing"] {
            for below in ["", "/x", "/new/deep"] {
                let at = format!("/{link}{below}");
                let bind = format!("{}:{at}", host.path().display());
                let script = format!("cat {at}/file");
                Run::launch(*who, ["--bind", &bind, text(&image.root()), "sh", "-c", &script])
                    .run()
                    .prints("bound");
                canary.check(&at);
            }
        }
        for at in ["/one", "/cwd", "/one/etc/../var", "/..", "/../.."] {
            let bind = format!("{}:{at}", host.path().display());
            let outcome = Run::launch(*who, ["--bind", &bind, text(&image.root()), "true"]).run();
            assert!(
                outcome.code() == Some(0) || outcome.refusal().as_deref() == Some("bind-target"),
                "{at}: {outcome}"
            );
            canary.check(at);
        }
    }
}

/// Programs whose headers lie: a refusal, or the kernel's or the loader's own end; never a hang.
#[test]
fn programs_with_lying_headers() {
    let image = Throwaway::new();
    let good = fs::read(image.at("bin/true")).unwrap();
    let put = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let header = |index: usize| u64::from_le_bytes(good[32..40].try_into().unwrap()) as usize + 56 * index;
    let of_kind = |kind: u32| {
        (0..12).map(header).find(|at| good[*at..*at + 4] == kind.to_le_bytes()).expect("a program header")
    };
    let (interpreter, dynamic, load) = (of_kind(3), of_kind(2), of_kind(1));
    let huge = &u64::MAX.to_le_bytes()[..];
    let far = &(1u64 << 62).to_le_bytes()[..];
    // elf(5): Elf64_Ehdr and Elf64_Phdr.
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing but the magic", good[..4].to_vec()),
        ("half a header", good[..40].to_vec()),
        ("a header alone", good[..64].to_vec()),
        ("65535 program headers", put(56, &[0xff, 0xff])),
        ("program headers far away", put(32, far)),
        ("program headers at the end of numbers", put(32, huge)),
        ("program headers of no size", put(54, &[0, 0])),
        ("class 32", put(4, &[1])),
        ("big-endian", put(5, &[2])),
        ("no class", put(4, &[0])),
        ("type of a core", put(16, &[4, 0])),
        ("interpreter far away", put(interpreter + 8, far)),
        ("interpreter without end", put(interpreter + 32, huge)),
        ("interpreter of no size", put(interpreter + 32, &[0; 8])),
        ("dynamic section far away", put(dynamic + 8, far)),
        ("dynamic section without end", put(dynamic + 32, huge)),
        ("dynamic section at a far address", put(dynamic + 16, far)),
        ("segment without end", put(load + 32, huge)),
        ("segment at the end of numbers", put(load + 16, huge)),
        ("sections far away", put(40, far)),
        ("65535 sections", put(60, &[0xff, 0xff, 0xff, 0xff])),
        ("cut in the middle", good[..good.len() / 2].to_vec()),
        ("nothing after the headers", {
            let mut b = good.clone();
            b[1024..].fill(0);
            b
        }),
        ("ones after the headers", {
            let mut b = good.clone();
            b[1024..].fill(0xff);
            b
        }),
    ];
    for (name, bytes) in cases {
        image.program("bin/elf", &bytes);
        for who in everyone() {
            let outcome =
                Run::launch(*who, [text(&image.root()), "elf"]).limit(Duration::from_secs(10)).run();
            match outcome.code() {
                Some(126 | 127) if outcome.refusal().is_some() => {
                    assert!(outcome.err().contains("what to do: "), "{name}: {outcome}");
                }
                // What the kernel and the loader do not read does not matter; 127 is the loader's own.
                Some(0 | 127) | None => {}
                other => panic!("{name}: {other:?} {outcome}"),
            }
            assert!(outcome.wall < Duration::from_secs(3), "{name}: {:?}", outcome.wall);
        }
    }
}

/// A library is read to tell whose MPI it is: neither its size nor its headers may matter.
#[test]
fn libraries_that_lie() {
    let image = Throwaway::new();
    let donor = host::image("bookworm-mpich");
    fs::copy(donor.join("opt/examples/hello"), image.at("bin/hello")).unwrap();
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let library = image.at("lib").join(&triple).join("libmpich.so.12");
    let real = fs::read(donor.join("usr/lib").join(&triple).join("libmpich.so.12")).unwrap();
    for (name, length, size) in [
        ("of 64 GiB", real.len(), 64 << 30),
        ("cut", 100_000, 0),
        ("of nothing", 0, 1 << 30),
        ("half", real.len() / 2, 0),
    ] {
        fs::write(&library, &real[..length]).unwrap();
        if size > 0 {
            fs::File::options().write(true).open(&library).unwrap().set_len(size).unwrap();
        }
        for who in everyone() {
            for mode in ["image", "auto"] {
                let (root, mode_option) = (image.root(), format!("--mpi={mode}"));
                let arguments = [&mode_option, text(&root), "hello"];
                let outcome = Run::hydra(*who, 2, arguments).limit(Duration::from_secs(30)).run();
                // The host's MPI may well stand in for it.
                assert!(outcome.code() != Some(0) || mode == "auto", "{name}: {outcome}");
                assert!(outcome.wall < Duration::from_secs(15), "{name}: {:?}", outcome.wall);
            }
        }
    }
    fs::write(&library, &real).unwrap();
    fs::File::options().write(true).open(&library).unwrap().write_all_at(&[0xff; 4096], 64).unwrap();
    for who in everyone() {
        Run::hydra(*who, 2, [text(&image.root()), "hello"]).limit(Duration::from_secs(30)).run();
    }
}

/// Each line doubles the last: 48 of them are 256 TiB.
#[test]
fn an_environment_that_doubles_itself() {
    let image = Throwaway::new();
    environment(&image, format!("A=xxxxxxxx\n{}", "A=$A$A\n".repeat(48)).as_bytes());
    for who in everyone() {
        let script = "ulimit -v 2000000; exec \"$@\"";
        let run = Run::command(
            *who,
            ["sh", "-c", script, "sh", text(launcher()), text(&image.root()), "sh", "-c", "echo ran"],
        );
        let outcome = run.limit(Duration::from_secs(20)).run();
        assert!(outcome.code() == Some(0) || outcome.refusal().is_some(), "{outcome}");
        assert!(outcome.wall < Duration::from_secs(5), "{:?}", outcome.wall);
    }
}

/// The loader of the program would wait for ever; we, who only look, must not.
/// What an image says is shown, and a terminal obeys none of it.
#[test]
fn terminals_obey_nothing_of_an_image() {
    let image = Throwaway::new();
    image.directory("ch").file("ch/environment", "\u{1b}[2Jgone\n");
    for who in everyone() {
        let plan = Run::launch(*who, ["plan", text(&image.root()), "true"]).run().good();
        assert!(plan.out().contains("/ch/environment: not understood: \\u{1b}[2Jgone"), "{plan}");
        assert!(!plan.out().contains('\u{1b}'), "{plan}");
        let missing = Run::launch(*who, [text(&image.root()), "/bin/\u{1b}[2Jx"]).run();
        assert!(!missing.err().contains('\u{1b}') && missing.err().contains("\\u{1b}[2Jx"), "{missing}");
    }
}

#[test]
fn nothing_of_an_image_is_opened_that_could_keep_us_waiting() {
    let image = Throwaway::new();
    image.fifo("etc/ld.so.cache").fifo("etc/ld.so.conf").directory("ch").fifo("ch/environment.x");
    for who in everyone() {
        let plan =
            Run::launch(*who, ["plan", text(&image.root()), "true"]).limit(Duration::from_secs(10)).run();
        assert!(plan.code() == Some(0) || plan.refusal().is_some(), "{plan}");
    }
    image.fifo("ch/environment");
    for who in everyone() {
        let run = Run::launch(*who, [text(&image.root()), "true"]).limit(Duration::from_secs(10));
        run.run().refused("image-layout", &["/ch/environment", "a device, FIFO or socket"]);
    }
}

#[test]
fn a_config_json_that_is_not_what_it_seems() {
    let image = Throwaway::new();
    let config = image.beside().join("config.json");
    let run = |name: &str| {
        for who in everyone() {
            let outcome = Run::launch(*who, [text(&image.root()), "sh", "-c", "echo ran"])
                .limit(Duration::from_secs(20))
                .run();
            assert!(outcome.code() == Some(0) || outcome.refusal().is_some(), "{name}: {outcome}");
            assert!(outcome.wall < Duration::from_secs(5), "{name}: {:?}", outcome.wall);
        }
    };
    fs::write(&config, "[".repeat(1_000_000)).unwrap();
    run("nested deeply");
    fs::write(&config, r#"{"config":{"Env":["#).unwrap();
    grow(&config, 100 << 20);
    run("of 100 MB");
    let pair: String = (0..60_000).map(|i| format!("\"N{i}=v\",")).collect();
    fs::write(&config, format!(r#"{{"config":{{"Env":[{pair}"A=1"],"WorkingDir":"../../.."}}}}"#)).unwrap();
    run("with 60000 variables");
    fs::write(&config, r#"{"config":{"Env":["=x","a\u0000b=1","B=\u0000"],"WorkingDir":"/nope"}}"#).unwrap();
    run("with NUL");
    fs::remove_file(&config).unwrap();
    symlink("/dev/zero", &config).unwrap();
    run("without end");
    fs::remove_file(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    run("that is a FIFO");
}

/// Somebody who may write to the image swaps a directory for a link while ranks start.
#[test]
fn an_image_that_changes_while_it_is_looked_at() {
    let canary = Canary::new();
    let image = Throwaway::new();
    image.link(canary.path().join("etc"), "link");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (etc, link, spare) = (image.at("etc"), image.at("link"), image.at("spare"));
                let _ = fs::rename(&etc, &spare).and_then(|()| fs::rename(&link, &etc));
                let _ = fs::rename(&etc, &link).and_then(|()| fs::rename(&spare, &etc));
            }
        });
        let rounds = if host::full() { 500 } else { 60 };
        let result = std::panic::catch_unwind(|| {
            for _ in 0..rounds {
                for who in everyone() {
                    let script = "cat /etc/passwd; true";
                    let outcome = Run::launch(*who, [text(&image.root()), "sh", "-c", script]).run();
                    assert!(!outcome.out().contains(SONG), "{outcome}");
                    assert!(outcome.code() == Some(0) || outcome.refusal().is_some(), "{outcome}");
                }
            }
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(result.is_ok());
    });
    canary.check("an image that changes");
}

/// Directories of the host that are no images, and an image that is shown inside itself.
#[test]
fn odd_choices_of_an_image() {
    let before = mounts();
    let image = Throwaway::new();
    for who in everyone() {
        for root in ["/proc", "/sys", "/dev", "/proc/self/fd", "/run"] {
            let outcome = Run::launch(*who, [root, "true"]).run();
            assert!(
                outcome.refusal().is_some() && matches!(outcome.code(), Some(125..=127)),
                "{root}: {outcome}"
            );
        }
        for root in ["/", "/proc/self/root"] {
            let outcome = Run::launch(*who, [root, "sh", "-c", "echo ran"]).run();
            outcome.refused("image-unknown", &["is the host's own root", "run the program by itself"]);
        }
        let root = image.root();
        let bind = format!("{}:/mnt", root.display());
        let outcome =
            Run::launch(*who, ["--bind", &bind, text(&root), "sh", "-c", "test -e /mnt/bin/sh && echo ran"])
                .cwd(&root)
                .run();
        outcome.prints("ran");
        let outcome = Run::launch(*who, [".", "sh", "-c", "echo ran"]).cwd(&root).run();
        outcome.prints("ran");
    }
    assert_eq!(before, mounts());
}

/// Where the host's mounts are shared with all others (systemd's default), nothing may travel back.
#[test]
fn no_mount_travels_back_to_a_host_that_shares_its_mounts() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    image.remove("etc").remove("home");
    let file = image.squash();
    for root in [image.root(), file] {
        for who in everyone() {
            let account = who.account();
            let script = format!(
                "cat /proc/self/mountinfo >{0}/before; setpriv --reuid={1} --regid={2} --init-groups env HOME={5} {3} --bind /usr:/mnt/x {4} sh -c 'echo ran'; \
                 status=$?; cat /proc/self/mountinfo >{0}/after; cmp {0}/before {0}/after && exit $status",
                image.beside().display(),
                account.uid,
                account.gid,
                launcher().display(),
                root.display(),
                account.home.display()
            );
            let outcome =
                Run::command(Who::Root, ["sh", "-c", &script]).prelude("mount --make-rshared /").run();
            outcome.prints("ran");
        }
    }
}

/// A root file system that is a mount of its own, with others below it, some of them not to be seen.
#[test]
fn an_image_with_mounts_of_its_own() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    image.directory("data");
    let prelude = format!(
        "mount --bind {0} {0}; mount -t tmpfs none {0}/data; echo below >{0}/data/file; mount -t tmpfs none {0}/etc",
        image.root().display()
    );
    for who in everyone() {
        let script = "cat /data/file; read line </etc/passwd && echo ran";
        let outcome = Run::launch(*who, [text(&image.root()), "sh", "-c", script]).prelude(&prelude).run();
        outcome.prints("below\nran");
    }
}
