//! Stores of images: what is left when writers are killed, many at once, no room; and what users are told.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{Who, everyone, is_root, launcher};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::layout::{self, oci, only_image, owned, text};
use hpc_launch_tests::run::{Outcome, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn image(who: Who, store: &Path, arguments: &[&str]) -> Outcome {
    Run::launch(who, [&["image"], arguments, &["--store", text(store)]].concat()).run()
}

/// An archive of a small root file system.
fn archive(beside: &Path) -> PathBuf {
    let throwaway = Throwaway::new();
    throwaway.file(
        "data",
        (0..600_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>(),
    );
    let file = beside.join("root.tar.gz");
    layout::tar(&throwaway.root(), &file);
    file
}

fn entries(path: &Path) -> Vec<String> {
    let all = fs::read_dir(path)
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect());
    all.unwrap_or_default()
}

/// Killed at any instant of an import, or of a conversion by a run: the store is whole, and the next one succeeds.
#[test]
fn killed_at_any_instant() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    let kills = if std::env::var_os("HPC_LAUNCH_FULL").is_some() { 1000 } else { 200 };
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let (path, shown) = (text(&file).to_owned(), text(&store).to_owned());
        let import = |n: usize| -> Run {
            match n % 2 {
                0 => Run::launch(*who, ["image", "import", "--store", &shown, &path, "x"]),
                _ => Run::launch(*who, ["--store", &shown, &path, "true"]),
            }
        };
        // How long one takes, from nothing.
        let began = Instant::now();
        import(0).run().good();
        let whole = began.elapsed();
        let (mut ended, mut unfinished) = (0, 0);
        for n in 0..kills / everyone().len() {
            // Another file to it: nothing is found made.
            image(*who, &store, &["gc", "--all"]).good();
            let _ = image(*who, &store, &["rm", "x"]);
            image(*who, &store, &["gc", "--all"]).good();
            assert_eq!(entries(&store.join("images")), [] as [&str; 0]);
            let running = import(n).start();
            // Spread over a little more than all of it, in an order that repeats nothing.
            let share = (n as f64 * 0.618_034).fract() * 1.1;
            std::thread::sleep(whole.mul_f64(share));
            match kill(Pid::from_raw(running.pid()), Signal::SIGKILL) {
                Ok(()) => {}
                Err(_) => ended += 1,
            }
            let outcome = running.finish();
            ended += usize::from(outcome.signal().is_none());
            unfinished += usize::from(!entries(&store.join("work")).is_empty());
            // Not even the store may be there yet.
            if store.join("store.json").exists() {
                let verified = image(*who, &store, &["verify"]).good();
                assert!(verified.out().contains(" 0 faults"), "{verified}");
            }
            import(n).run().good();
            image(*who, &store, &["gc"]).good();
            let verified = image(*who, &store, &["verify"]).good();
            assert!(verified.out().contains(": 1 images, 0 faults\n"), "{verified}");
            assert_eq!(entries(&store.join("work")), [] as [&str; 0], "what was left is gone");
        }
        let tried = kills / everyone().len();
        eprintln!("{who:?}: {tried} kills, {ended} after the end, {unfinished} with something half-written");
        assert!(unfinished > 0, "no kill came while something was being written: the test shows nothing");
    }
}

/// Sixteen at once make one image.
#[test]
fn many_at_once_make_it_once() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let one =
            || Run::launch(*who, ["image", "import", "--store", text(&store), text(&file), "x"]).start();
        let all: Vec<_> = (0..16).map(|_| one()).collect();
        let outs: Vec<String> = all.into_iter().map(|r| r.finish().good().out()).collect();
        let made = outs.iter().filter(|o| !o.contains("which was there")).count();
        assert_eq!(made, 1, "{outs:#?}");
        only_image(&store);
        assert_eq!(entries(&store.join("work")), [] as [&str; 0]);
    }
}

/// One job of 16 ranks converts once, and says so once; ranks that wait longer than that takes do not give up.
#[test]
fn ranks_of_a_job_make_it_once() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let run = Run::launch(
            *who,
            ["-n", "16", "--oversubscribe", "--store", text(&store), text(&file), "cat", "/data"],
        );
        let outcome = run.run().good();
        assert_eq!(outcome.out().len(), outcome.out().len() / 16 * 16);
        assert_eq!(outcome.err().matches("making an image of it in").count(), 1, "{outcome}");
        only_image(&store);
    }
}

/// What has been changed in a store is found.
#[test]
fn verify_finds_what_was_changed() {
    let dir = directory("/var/tmp");
    let store = dir.path().join("store");
    let file = archive(dir.path());
    let who = everyone()[0];
    let store = if who == Who::Root { store } else { owned(dir.path(), "store", who) };
    image(who, &store, &["import", text(&file), "x:1"]).good();
    let sqfs = only_image(&store);
    let mut bytes = fs::read(&sqfs).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&sqfs, &bytes).unwrap();
    let outcome = image(who, &store, &["verify"]);
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    assert!(outcome.err().contains("image.sqfs has been changed: its digest is"), "{outcome}");
    // The same image from another file takes its place: it is compared first.
    let copy = dir.path().join("copy.tar.gz");
    fs::copy(&file, &copy).unwrap();
    layout::open(&copy);
    image(who, &store, &["import", text(&copy), "x:1"]).good();
    image(who, &store, &["verify"]).good();
    fs::write(&sqfs, &bytes[..middle]).unwrap();
    assert!(image(who, &store, &["verify"]).err().contains(&format!("has {middle} bytes and should have")));
    // One that was cut short is not what was made of its archive.
    image(who, &store, &["import", text(&file), "x:1"]).good();
    image(who, &store, &["verify"]).good();
    fs::write(sqfs.with_file_name("image.json"), "{}").unwrap();
    assert!(image(who, &store, &["verify"]).err().contains("image.json has been changed"));
    fs::remove_dir_all(sqfs.parent().unwrap()).unwrap();
    assert!(image(who, &store, &["verify"]).err().contains("names the image sha256:"));
    image(who, &store, &["rm", "x:1"]).good();
    image(who, &store, &["verify"]).good();
}

/// Names, nearest names, and which of two stores comes first.
#[test]
fn names_and_stores() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    let who = everyone()[everyone().len() - 1];
    let (site, own) = (owned(dir.path(), "site", who), owned(dir.path(), "own", who));
    image(who, &own, &["import", text(&file), "solver:1.2"]).good();
    image(who, &own, &["import", text(&file), "group/other"]).good();
    let both = format!("{},{}", text(&site), text(&own));
    let run = |image: &str| {
        Run::launch(who, [image, "sh", "-c", "echo here"]).env("HPC_LAUNCH_STORE", &both).cwd("/").run()
    };
    assert_eq!(run("solver:1.2").good().out(), "here\n");
    assert_eq!(run("group/other").good().out(), "here\n");
    run("solvr:1.2").refused("image-missing", &["no store has solvr:1.2", "did you mean solver:1.2?"]);
    run("other").refused("image-missing", &["did you mean group/other:latest?"]);
    run("./solver:1.2").refused("image-missing", &["cannot open the image ./solver:1.2"]);
    image(who, &own, &["rm", "solver:1"])
        .refused("image-missing", &["there is no image solver:1", "did you mean solver:1.2?"]);
    image(who, &own, &["import", text(&file), "Solver"])
        .refused("image-name", &["is no name of an image", "lower-case"]);
    // The site's comes first, and that is said.
    image(who, &site, &["import", text(&file), "solver:1.2"]).good();
    let again =
        Run::launch(who, ["image", "import", text(&file), "solver:1.2"]).env("HPC_LAUNCH_STORE", &both).run();
    again.good().says(&["warning:", "has solver:1.2 too, and comes first"]);
    let list = Run::launch(who, ["image", "list", "--json"]).env("HPC_LAUNCH_STORE", &both).run().good();
    let lines: serde_json::Value = serde_json::from_str(&list.out()).unwrap();
    let names: Vec<&str> = lines.as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["solver:1.2", "group/other:latest", "solver:1.2"]);
    // One image of three names.
    let ids: BTreeSet<&str> = lines.as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
    let inspect = image(who, &own, &["inspect", "solver:1.2"]).good();
    let what: serde_json::Value = serde_json::from_str(&inspect.out()).unwrap();
    assert_eq!(what["names"], serde_json::json!(["group/other:latest", "solver:1.2"]));
    assert_eq!(what["origin"]["from"], text(&fs::canonicalize(&file).unwrap()));
    // What has a name stays, what has none goes.
    image(who, &own, &["gc", "--all"]).good();
    assert_eq!(run("group/other").good().out(), "here\n");
    image(who, &own, &["rm", "group/other", "solver:1.2"]).good();
    assert!(image(who, &own, &["gc", "--all"]).good().out().starts_with("1 images removed"));
    assert_eq!(entries(&own.join("images")), [] as [&str; 0]);
}

/// A store on a file system that is full: said with numbers, and nothing half-written stays.
#[test]
fn no_room() {
    if !is_root() {
        return;
    }
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    for (size, parts) in [
        ("256k", &["the image needs about", "are free in"][..]),
        ("1500k", &["No space left on device", "free there:"]),
    ] {
        let program =
            format!("{} image import --store {}/s {} x", launcher().display(), text(&small), text(&file));
        let script = format!(
            "mount -t tmpfs -o size={size} tmpfs {0} && {{ {program}; s=$?; find {0}/s/work {0}/s/images -mindepth 1; exit $s; }}",
            text(&small)
        );
        let outcome = Run::command(Who::Root, ["unshare", "-m", "sh", "-c", &script]).run();
        let outcome = outcome.refused("store-full", parts);
        assert_eq!(outcome.out(), "", "nothing stays: {outcome}");
    }
}

/// Stores that cannot be written to, or are none.
#[test]
fn stores_that_are_none() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    let who = Who::User;
    let store = if is_root() { dir.path().join("roots") } else { PathBuf::from("/proc/store") };
    if is_root() {
        fs::create_dir(&store).unwrap();
    }
    image(who, &store, &["import", text(&file), "x"])
        .refused("store-unusable", &["the store of images", "--store"]);
    Run::launch(who, ["--store", text(&store), text(&file), "true"])
        .run()
        .refused("store-unusable", &["cannot write"]);
    let other = owned(dir.path(), "other", who);
    fs::write(other.join("store.json"), "{\"version\":7,\"what\":\"x\"}").unwrap();
    image(who, &other, &["list"]).refused("store-unusable", &["its version is 7, and this program's 1"]);
    let none = owned(dir.path(), "none", who);
    assert_eq!(image(who, &none, &["list"]).good().out(), "");
    image(who, &none, &["inspect", "x"]).refused("image-missing", &["there is no store yet"]);
}

/// Who makes an image and stands still is named.
#[test]
fn one_who_does_not_proceed_is_named() {
    let dir = directory("/var/tmp");
    let file = archive(dir.path());
    let who = everyone()[0];
    let store = owned(dir.path(), "store", who);
    let first = Run::launch(who, ["image", "import", "--store", text(&store), text(&file), "x"]).start();
    let lock = || entries(&store.join("locks")).into_iter().find(|name| name.starts_with("file-"));
    let since = Instant::now();
    while lock().is_none() {
        assert!(since.elapsed() < Duration::from_secs(10), "no lock");
        std::thread::sleep(Duration::from_millis(1));
    }
    let stop = Pid::from_raw(first.pid());
    kill(stop, Signal::SIGSTOP).unwrap();
    let second = Run::launch(who, ["image", "import", "--store", text(&store), text(&file), "x"]);
    let outcome = second.env("HPC_LAUNCH_LOCK_TIMEOUT", "1").run();
    kill(stop, Signal::SIGCONT).unwrap();
    outcome.refused("store-busy", &[&format!(".{}.", first.pid()), "without proceeding", "lock_timeout"]);
    first.finish().good();
}

/// What an OCI image says of its environment, its directory and its program; what the user says wins.
#[test]
fn environment_directory_and_entry_point() {
    if !is_root() {
        return;
    }
    let dir = directory("/var/tmp");
    let throwaway = Throwaway::new();
    throwaway
        .directory("work dir")
        .program("bin/entry", "#!/bin/sh\necho \"entry $# $1 $2 in $(pwd) with $A and $B\"\n");
    let tar = dir.path().join("root.tar");
    layout::tar(&throwaway.root(), &tar);
    let layers = format!(
        "import tarfile
CONFIG = {{'Env': ['A=of image', 'B=two', 'PATH=/bin'], 'WorkingDir': '/work dir', 'Entrypoint': ['entry', 'first'], 'Cmd': ['second'], 'Labels': {{'l': 'v'}}}}
t = tarfile.open({:?})
kinds = {{tarfile.DIRTYPE: 'dir', tarfile.SYMTYPE: 'symlink', tarfile.REGTYPE: 'file'}}
layers = [[{{'name': m.name, 'type': kinds[m.type], 'mode': m.mode, 'linkname': m.linkname, 'data': t.extractfile(m).read() if m.isreg() else b''}} for m in t]]",
        text(&tar)
    );
    oci(&layers, &dir.path().join("oci"));
    let layout = dir.path().join("oci");
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let run = |arguments: &[&str]| {
            let all = [&["--store", text(&store)], arguments].concat();
            Run::launch(*who, all).cwd("/usr/lib").run()
        };
        let said = "entry 2 first second in /work dir with of image and two\n";
        // The working directory outside is not there inside.
        assert_eq!(run(&[text(&layout)]).good().out(), said);
        assert_eq!(run(&["--env", "B=of user", text(&layout)]).good().out(), said.replace("two", "of user"));
        assert_eq!(run(&["-n", "2", text(&layout)]).good().out(), said.repeat(2));
        assert_eq!(run(&[text(&layout), "sh", "-c", "echo $A; pwd"]).good().out(), "of image\n/work dir\n");
        // Its file in the store is the same image.
        let file = only_image(&store);
        assert_eq!(run(&[text(&file)]).good().out(), said);
        let inspect = image(*who, &store, &["import", text(&layout), "x"]);
        inspect.good();
        let what = image(*who, &store, &["inspect", "x"]).good();
        let what: serde_json::Value = serde_json::from_str(&what.out()).unwrap();
        assert_eq!(what["config"]["Labels"]["l"], "v");
        assert_eq!(what["config"]["Entrypoint"], serde_json::json!(["entry", "first"]));
        assert!(what["origin"]["manifest"].as_str().unwrap().starts_with("sha256:"));
    }
    Run::launch(everyone()[0], [text(&throwaway.root())])
        .run()
        .refused("usage", &["no command was given", "says none"]);
    // A bundle's configuration comes along when its root is imported.
    let config = r#"{"root":{"path":"image"},"process":{"env":["A=of bundle","B=3"],"args":["/bin/entry","x"],"cwd":"/"}}"#;
    fs::write(throwaway.root().with_file_name("config.json"), config).unwrap();
    let store = dir.path().join("of-bundle");
    image(Who::Root, &store, &["import", text(&throwaway.root()), "bundle"]).good();
    let outcome = Run::launch(Who::Root, ["--store", text(&store), "bundle"]).run().good();
    assert_eq!(outcome.out(), "entry 1 x  in / with of bundle and 3\n");
}

/// Ranks that join look at nothing of the file system that the image is on.
#[test]
fn joining_ranks_open_nothing_of_the_images_file_system() {
    let dir = directory("/var/tmp");
    let throwaway = Throwaway::new_in(text(dir.path()));
    let squashfs = throwaway.squash();
    let who = everyone()[0];
    let store = owned(dir.path(), "store", who);
    image(who, &store, &["import", text(&throwaway.root()), "joined:1"]).good();
    for given in [text(&throwaway.root()), text(&squashfs), "joined:1"] {
        let trace = owned(dir.path(), &format!("trace-{}", given.len()), who);
        let program = launcher().display().to_string();
        let prefix = text(&trace).to_owned() + "/t";
        let strace = ["strace", "-ff", "-o", &prefix, "-e", "trace=%file,%desc,execve,setns"];
        let line = ["-n", "16", "--oversubscribe", "--store", text(&store), given, "sleep", "1"];
        Run::command(who, [&strace[..], &[&program], &line].concat())
            .limit(Duration::from_secs(120))
            .run()
            .good();
        let mut joined = 0;
        for file in entries(&trace) {
            let trace = fs::read_to_string(trace.join(file)).unwrap();
            let Some(setns) = trace.lines().position(|l| l.starts_with("setns(")) else { continue };
            let lines: Vec<&str> = trace.lines().collect();
            let end = lines
                .iter()
                .position(|l| l.starts_with("execve(") && l.contains("sleep\"") && l.ends_with("= 0"));
            let Some(end) = end else { continue };
            joined += 1;
            let is_open = |l: &&&str| l.starts_with("open") && !l.contains(" = -1 ");
            // Outside: nothing below the directory of image and store.
            let outside: Vec<_> = lines[..setns]
                .iter()
                .filter(|l| l.contains(text(dir.path())) && !l.starts_with("execve("))
                .collect();
            assert!(outside.is_empty(), "{given}: {outside:#?}");
            // Inside: only what is not the image's, the sandbox's own directory and /proc.
            let inside: Vec<_> = lines[setns..end]
                .iter()
                .filter(is_open)
                .filter(|l| !l.contains("\"/run/hpc-launch") && !l.contains("\"/proc/"))
                .collect();
            assert!(inside.is_empty(), "{given}: {inside:#?}");
        }
        assert_eq!(joined, 15, "{given}");
    }
}

/// A copy on the node's storage: one for 16 ranks and for the next job, of SquashFS and of the part of a SIF file.
#[test]
fn one_copy_on_the_node() {
    let dir = directory("/var/tmp");
    let throwaway = Throwaway::new();
    let squashfs = throwaway.squash();
    let sif = dir.path().join("x.sif");
    layout::sif(&squashfs, &sif);
    for who in everyone() {
        let node = owned(dir.path(), &format!("node-{who:?}"), *who);
        let run = |image: &str| {
            let line = ["-n", "16", "--oversubscribe", "--cache", "node", image, "sh", "-c", "echo here"];
            Run::launch(*who, line).env("HPC_LAUNCH_NODE_CACHE", node.join("cache")).run()
        };
        for (n, image) in [text(&squashfs), text(&sif)].into_iter().enumerate() {
            let outcome = run(image).good();
            assert_eq!(outcome.out(), "here\n".repeat(16));
            assert_eq!(outcome.err().matches(&format!("copying {image} to ")).count(), 1, "{outcome}");
            assert_eq!(entries(&node.join("cache/copies")).len(), n + 1);
            assert_eq!(run(image).good().err(), "", "made once");
        }
        let plan = Run::launch(*who, ["plan", "--cache", "node", text(&sif), "true"])
            .env("HPC_LAUNCH_NODE_CACHE", node.join("cache"))
            .run();
        assert!(plan.good().out().contains(&format!("the node's copy of {}", text(&sif))));
        let outcome = run(text(&throwaway.root())).good();
        assert!(outcome.err().contains("is a directory, and is used where it is"), "{outcome}");
        // Somebody else's directory is not trusted.
        fs::set_permissions(node.join("cache"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let alone = Run::launch(*who, ["--cache", "node", text(&squashfs), "true"]);
        let alone = alone.env("HPC_LAUNCH_NODE_CACHE", node.join("cache")).run();
        alone.refused("store-unusable", &["is not this user's alone", "node_cache"]);
    }
}

/// A million files above three gigabytes in one: neither is held in memory.
#[test]
fn memory_is_bounded() {
    const MAKER: &str = r"
import sys, gzip, hashlib, json, os
os.makedirs(sys.argv[1] + '/blobs/sha256')
def blob(write):
    path = sys.argv[1] + '/blob'
    write(path)
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while piece := f.read(1 << 20): digest.update(piece)
    size = os.path.getsize(path)
    os.rename(path, sys.argv[1] + '/blobs/sha256/' + digest.hexdigest())
    return {'digest': 'sha256:' + digest.hexdigest(), 'size': size}
def header(name, size):
    h = bytearray(512); h[:len(name)] = name
    h[100:108] = b'0000644\0'; h[108:116] = b'0000000\0'; h[116:124] = b'0000000\0'
    h[124:136] = b'%011o\0' % size; h[136:148] = b'00000000000\0'; h[148:156] = b' ' * 8; h[156:157] = b'0'; h[257:265] = b'ustar\x0000'
    h[148:156] = b'%06o\0 ' % sum(h)
    return bytes(h)
class Archive:
    def __init__(self, path): self.out, self.digest = gzip.open(path, 'wb', 1), hashlib.sha256()
    def write(self, piece): self.out.write(piece); self.digest.update(piece)
    def __enter__(self): return self
    def __exit__(self, *_): self.out.close(); diff_ids.append('sha256:' + self.digest.hexdigest())
diff_ids = []
def large(path):
    with Archive(path) as out:
        out.write(header(b'large', 3 << 30))
        block = bytes(range(256)) * 4096
        for i in range(3 << 10): out.write(block)
        out.write(b'\0' * 1024)
def many(path):
    with Archive(path) as out:
        for i in range(1000000): out.write(header(b'usr/lib/python3/directory-%d/some-file-name-%d' % (i // 500, i), 0))
        out.write(b'\0' * 1024)
def text(value): return lambda path: open(path, 'w').write(json.dumps(value))
media = 'application/vnd.oci.image.'
layers = [dict(blob(make), mediaType=media + 'layer.v1.tar+gzip') for make in (large, many)]
config = dict(blob(text({'architecture': sys.argv[2], 'os': 'linux', 'rootfs': {'type': 'layers', 'diff_ids': diff_ids}})), mediaType=media + 'config.v1+json')
manifest = dict(blob(text({'schemaVersion': 2, 'config': config, 'layers': layers})), mediaType=media + 'manifest.v1+json')
text({'schemaVersion': 2, 'manifests': [manifest]})(sys.argv[1] + '/index.json')
text({'imageLayoutVersion': '1.0.0'})(sys.argv[1] + '/oci-layout')
";
    const MEASURE: &str = "import sys, resource, subprocess
subprocess.check_call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let dir = directory("/var/tmp");
    let file = dir.path().join("large");
    layout::python(MAKER, &[text(&file), if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }]);
    let who = everyone()[0];
    let program = launcher().display().to_string();
    let store = dir.path().join("store");
    let line =
        ["python3", "-c", MEASURE, &program, "image", "import", "--store", text(&store), text(&file), "x"];
    let outcome = Run::command(who, line).limit(Duration::from_secs(120)).run().good();
    let kib: u64 = outcome.out().lines().last().unwrap().parse().unwrap();
    assert!(kib < 256 << 10, "{kib} KiB");
    eprintln!("{} MiB", kib >> 10);
}
