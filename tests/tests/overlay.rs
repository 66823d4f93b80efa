//! `--overlay` that keeps what is written: whose it is, who sees it, and what of it stays.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use hpc_launch_tests::canary::{assert_same, record};
use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::hosts::{By, HEAD, Hosts};
use hpc_launch_tests::image::{Throwaway, directory, squash};
use hpc_launch_tests::leaks;
use hpc_launch_tests::overlay::{image_of, layer, lines, names, node, own, own_in, shell, text};
use hpc_launch_tests::run::Run;

#[test]
fn a_directory_keeps_what_one_process_writes() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let (before, host) = (record(image.beside()), leaks::Host::now());
        let over = text(dir.path());
        let write =
            "echo new >/data; echo made >/made; rm /etc/old; rm -r /opt/d; echo x >/usr/x; echo /etc/*";
        let outcome = shell(*who, &image.root(), &[over], write).run().good();
        assert!(!outcome.out().contains("old"), "{outcome}");
        let read =
            "cat /data /made /usr/x; test -e /etc/old || test -e /opt/d || echo gone; echo more >>/made";
        shell(*who, &image.root(), &[over], read).run().prints("new\nmade\nx\ngone");
        shell(*who, &image.root(), &[over], "cat /made").run().prints("made\nmore");
        // Read-only, and for several: the same, by Apptainer's layout.
        let only_read = format!("{over}:ro");
        let outcome = shell(*who, &image.root(), &[&only_read], "cat /made; echo no >/made").run();
        assert_eq!((outcome.code(), outcome.out().trim()), (Some(2), "made\nmore"), "{outcome}");
        outcome.says(&["Read-only file system"]);
        // Not a word of it without.
        shell(*who, &image.root(), &[], "cat /data /etc/old; test -e /made || echo none")
            .run()
            .prints("imageimagenone");
        assert_eq!(names(dir.path()), ["upper", "work"]);
        // Nothing of the sandbox's own in it: what was missing in the image, such as /etc/hosts, lies elsewhere.
        assert_eq!(names(&dir.path().join("upper")), ["data", "etc", "made", "opt", "usr"]);
        assert_eq!(names(&dir.path().join("upper/etc")), ["old"]);
        assert_same(&before, &record(image.beside()), "writing to an overlay");
        host.is_as_before("overlays");
        // Its owner can remove it with usual means.
        Run::command(*who, ["rm", "-rf"])
            .args([dir.path().join("upper"), dir.path().join("work")])
            .run()
            .good();
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn mount_points_that_are_missing_are_found_in_an_overlay_too() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        for name in ["run", "dev", "sys", "etc", "home"] {
            image.remove(name);
        }
        fs::write(image.beside().join("file"), "host").unwrap();
        let bind = format!("{}:/opt/very/deep", image.beside().display());
        let over = text(dir.path());
        let script = "cat /opt/very/deep/file; test -c /dev/null && wc -l </etc/passwd >/dev/null && echo x >/opt/x; echo y";
        let run = |script| shell(*who, &image.root(), &[over], script).env("HPC_LAUNCH_BINDS", &bind).run();
        run(script).prints("hosty");
        assert_eq!(names(&dir.path().join("upper")), ["opt"]);
        assert_eq!(names(&dir.path().join("upper/opt")), ["x"]);
        // What hides one is overcome.
        shell(*who, &image.root(), &[over], "rm -r /opt; echo file >/opt").run().good();
        let outcome = run(script);
        outcome.refused("bind-target", &["/opt/very/deep", "/opt is not a directory"]);
        shell(*who, &image.root(), &[over], "rm /opt").run().good();
        run(script).prints("hosty");
    }
}

/// Each rank writes, and waits for the others.
const TOGETHER: &str = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/w.$r
    i=0; while test $i -lt 1000; do
        test -s /w.0 && test -s /w.1 && test -s /w.2 && test -s /w.3 && break; sleep 0.01; i=$((i+1)); done
    read a </w.0; read b </w.1; read c </w.2; read d </w.3; echo $a$b$c$d";

fn node_is_shared(run: impl Fn(Who, u32, Vec<String>) -> Run) {
    for who in everyone() {
        let (image, dir, host) = (image_of(*who), own(*who), leaks::Host::now());
        let over = format!("node:{}", dir.path().display());
        let arguments = |line: &str| {
            ["--overlay", &over, text(&image.root()), "sh", "-c", line].map(String::from).to_vec()
        };
        let outcome = run(*who, 4, arguments(TOGETHER)).run().good();
        assert_eq!(lines(&outcome), ["0123"; 4], "{outcome}");
        assert_eq!(names(dir.path()), [node()]);
        assert_eq!(names(&dir.path().join(node()).join("upper")), ["w.0", "w.1", "w.2", "w.3"]);
        // The next job sees it, and ranks that end at once do not stand in each other's way.
        let outcome = run(*who, 8, arguments("read a </w.3; echo $a")).run().good();
        assert_eq!(lines(&outcome), ["3"; 8], "{outcome}");
        host.is_as_before("a job with an overlay");
    }
}

#[test]
fn ranks_of_a_node_share_one_under_mpirun() {
    node_is_shared(Run::mpirun);
}

#[test]
fn ranks_of_a_node_share_one_under_hydra() {
    node_is_shared(Run::hydra);
}

fn ranks_are_apart(mpi: &str, run: impl Fn(Who, u32, Vec<String>) -> Run) {
    let host_image = host::image(&format!("bookworm-{mpi}"));
    for who in everyone() {
        let (image, dir, host) = (image_of(*who), own(*who), leaks::Host::now());
        let over = format!("rank:{}", dir.path().display());
        let arguments = |image: &Path, command: &[&str]| {
            let mut all = ["--overlay", &over, text(image)].map(String::from).to_vec();
            all.extend(command.iter().map(ToString::to_string));
            all
        };
        let write = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/mine; sleep 0.5; cat /mine; readlink /proc/self/ns/user";
        let outcome = run(*who, 4, arguments(&image.root(), &["sh", "-c", write])).run().good();
        let said = lines(&outcome);
        assert_eq!(said[..4], ["0", "1", "2", "3"], "{outcome}");
        assert_eq!(said[4..], vec![said[4].clone(); 4], "another user namespace\n{outcome}");
        let ranks: Vec<String> = (0..4).map(|rank| format!("rank-{rank}")).collect();
        assert_eq!(names(dir.path()), ranks);
        for (rank, name) in ranks.iter().enumerate() {
            let kept = fs::read_to_string(dir.path().join(name).join("upper/mine")).unwrap();
            assert_eq!(kept, format!("{rank}\n"));
        }
        let read = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; read m </mine; test $r = $m && echo same";
        let outcome = run(*who, 4, arguments(&image.root(), &["sh", "-c", read])).run().good();
        assert_eq!(lines(&outcome), ["same"; 4], "{outcome}");
        // They read each other's memory all the same.
        for (program, said) in
            [("cma", "cma: 4 of 4 reads correct"), ("ring", "ring of 4 ranks: sum 6 correct")]
        {
            let program = format!("/opt/examples/{program}");
            let outcome = run(*who, 4, arguments(&host_image, &[&program])).run().good();
            assert!(outcome.out().lines().any(|line| line == said), "{outcome}");
        }
        // Bridged, with one helper for all of them.
        let other = host::image(if mpi == "openmpi" { "bookworm-mpich" } else { "bookworm-openmpi" });
        let outcome = run(*who, 4, arguments(&other, &["/opt/examples/ring"])).run().good();
        assert!(outcome.out().contains("ring of 4 ranks: sum 6 correct"), "{outcome}");
        host.is_as_before("ranks with overlays of their own");
    }
}

#[test]
fn ranks_have_their_own_under_mpirun() {
    ranks_are_apart("openmpi", Run::mpirun);
}

#[test]
fn ranks_have_their_own_under_hydra() {
    ranks_are_apart("mpich", Run::hydra);
}

#[test]
fn ranks_without_a_launcher_have_overlays_too() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        for (whose, made) in [("node", node()), ("rank", "rank-1".to_owned())] {
            let over = format!("{whose}:{}", dir.path().display());
            let options = ["-n", "2", "--oversubscribe", "--overlay", &over];
            let line = [text(&image.root()), "sh", "-c", "echo x >/w.$HPC_LAUNCH_RANK"].map(String::from);
            Run::launch(*who, options).args(line).run().good();
            assert!(dir.path().join(&made).join("upper/w.1").exists(), "{whose}");
        }
    }
}

#[test]
fn images_in_files_take_overlays_too() {
    let file = host::image("bookworm-openmpi.sqfs");
    for who in everyone() {
        let (dir, host) = (own(*who), leaks::Host::now());
        let over = format!("rank:{}", dir.path().display());
        for line in [["sh", "-c", "echo x >/made"], ["sh", "-c", "read x </made; echo $x"]] {
            Run::mpirun(*who, 2, ["--overlay", &over, text(&file)]).args(line).run().good();
        }
        let outcome = Run::mpirun(*who, 4, ["--overlay", &over, text(&file), "/opt/examples/cma"]).run();
        assert!(outcome.good().out().contains("cma: 4 of 4 reads correct"));
        assert_eq!(names(&dir.path().join("rank-1/upper")), ["made"]);
        host.is_as_before("overlays over files");
    }
}

#[test]
fn ranks_with_other_overlays_have_another_sandbox() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let (a, b) = (layer(dir.path(), "a", "f", "of a\n"), layer(dir.path(), "b", "f", "of b\n"));
    for who in everyone() {
        let line = |l: &Path| {
            let over = format!("{}:ro", l.display());
            [text(host::launcher()), "--overlay", &over, text(&image.root()), "sh", "-c", "sleep 0.3; cat /f"]
                .map(String::from)
        };
        let run = Run::command(*who, ["mpirun.openmpi", "--oversubscribe", "-n", "2"]).args(line(&a));
        let run = run.args([":", "-n", "2"]).args(line(&b));
        let run = run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        let outcome = run.run().good();
        assert_eq!(lines(&outcome), ["of a", "of a", "of b", "of b"], "{outcome}");
    }
}

#[test]
fn two_jobs_do_not_write_to_one() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let over = text(dir.path());
        let mut running = shell(*who, &image.root(), &[over], "echo in; sleep 4").start();
        running.wait_until("it is in", |r| r.out().contains("in"));
        let outcome = shell(*who, &image.root(), &[over], "true").run();
        outcome.refused("overlay-busy", &["of another sandbox", text(&dir.path().join("upper")), "rank:DIR"]);
        // A look at the plan harms nobody.
        Run::launch(*who, ["plan", "--overlay", over, text(&image.root()), "true"]).run().good();
        running.finish().good();
        shell(*who, &image.root(), &[over], "echo free").run().prints("free");
    }
}

#[test]
fn hosts_that_share_a_directory_write_apart() {
    if !is_root() {
        eprintln!("not run: hosts need root");
        return;
    }
    let bed = Hosts::new(2);
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let over = format!("node:{}", dir.path().display());
        let write = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/w.$r; sleep 1; echo /w.*";
        let root = image.root();
        let line = ["--overlay", &over, text(&root), "sh", "-c", write];
        for by in [By::Mpirun, By::Hydra] {
            let outcome = bed.on(HEAD).launch(by, *who, 2, line).limit(Duration::from_secs(60)).run().good();
            let said = lines(&outcome);
            let (first, last) = (said[0].clone(), said[3].clone());
            assert!(said[1] == first && said[2] == last && first != last, "{outcome}");
            let both = [first, last].map(|l| l.split(' ').count());
            assert_eq!(both, [2, 2], "{outcome}");
        }
        assert_eq!(names(dir.path()), ["h1", "h2"]);
        let written: Vec<usize> = ["h1", "h2"].map(|h| names(&dir.path().join(h).join("upper")).len()).into();
        assert_eq!(written.iter().sum::<usize>(), 4);
        // A plan makes nothing.
        let other = own(*who);
        let over = format!("node:{}", other.path().display());
        Run::launch(*who, ["plan", "--overlay", &over, text(&image.root()), "true"]).run().good();
        assert!(names(other.path()).is_empty());
    }
}

#[test]
fn directories_may_lie_anywhere() {
    for who in everyone() {
        for parent in ["/tmp", "/dev/shm", "/var/tmp"] {
            let (image, dir) = (image_of(*who), own_in(parent, *who));
            for name in ["plain", "a,b=c:d", "line\nfeed", "qu'ote \"d\" \\ back"] {
                let path = dir.path().join(name);
                Run::command(*who, ["mkdir", text(&path)]).run().good();
                shell(*who, &image.root(), &[text(&path)], "echo x >/x").run().good();
                let only_read = format!("{}:ro", path.display());
                shell(*who, &image.root(), &[&only_read], "cat /x").run().prints("x");
            }
            // By a relative path, through a link, and from the configuration.
            Run::command(*who, ["ln", "-s", "plain", text(&dir.path().join("link"))]).run().good();
            for path in ["plain", "link", "./link/"] {
                shell(*who, &image.root(), &[path], "cat /x").cwd(dir.path()).run().prints("x");
            }
            let run = shell(*who, &image.root(), &[], "cat /x").cwd(dir.path());
            run.env("HPC_LAUNCH_OVERLAYS", "plain:ro").run().prints("x");
        }
    }
}

/// Ranks that join look at nothing that is laid over the image.
#[test]
fn joining_ranks_look_at_no_overlay() {
    let (image, who) = (Throwaway::new(), everyone()[0]);
    let (dir, trace) = (own(who), own(who));
    image.owned_by(who);
    let only_read = layer(dir.path(), "layer", "opt/f", "");
    let packed = dir.path().join("layer.sqfs");
    squash(&only_read, &packed, &[]);
    let root = image.root();
    for overlays in [
        vec![format!("{}:ro", only_read.display()), format!("{}:ro", packed.display())],
        vec![format!("{}:ro", only_read.display()), format!("node:{}", dir.path().join("node").display())],
    ] {
        let traces = trace.path().join(overlays[1].rsplit('/').next().unwrap());
        for made in [&traces, &dir.path().join("node")] {
            Run::command(who, ["mkdir", "-p", text(made)]).run().good();
        }
        let prefix = traces.join("t").display().to_string();
        let strace = ["strace", "-ff", "-o", &prefix, "-e", "trace=%file,%desc,execve,setns"];
        let run = Run::command(who, strace).args([host::launcher()]).args(["-n", "8", "--oversubscribe"]);
        let run = overlays.iter().fold(run, |run, overlay| run.args(["--overlay", overlay]));
        run.args([text(&root), "sleep", "2"]).limit(Duration::from_secs(120)).run().good();
        let mut joined = 0;
        for name in names(&traces) {
            let trace = fs::read_to_string(traces.join(name)).unwrap();
            let lines: Vec<&str> = trace.lines().collect();
            let is_start = |l: &&str| l.starts_with("execve(") && l.contains("sleep\"") && l.ends_with("= 0");
            let entered = lines.iter().position(|l| l.starts_with("setns("));
            let (Some(entered), Some(start)) = (entered, lines.iter().position(is_start)) else { continue };
            joined += 1;
            let at_it = |l: &&&str| l.contains(text(dir.path())) && !l.starts_with("execve(");
            let outside: Vec<_> = lines[..entered].iter().filter(at_it).collect();
            assert!(outside.is_empty(), "{overlays:?}: {outside:#?}");
            let is_open = |l: &&&str| {
                l.starts_with("open")
                    && !l.contains(" = -1 ")
                    && !l.contains("\"/run/hpc-launch")
                    && !l.contains("\"/proc/")
            };
            let inside: Vec<_> = lines[entered..start].iter().filter(is_open).collect();
            assert!(inside.is_empty(), "{overlays:?}: {inside:#?}");
        }
        assert_eq!(joined, 7, "{overlays:?}");
    }
}

/// A directory that the real Apptainer has written to, and the other way round. As a user: as root it wants every
/// capability, which root in a container or a virtual machine may lack.
#[test]
fn a_directory_of_apptainers_is_understood_by_both() {
    let apptainer = host::image("libc").with_file_name("apptainer");
    if !apptainer.exists() {
        eprintln!("not run: there is no Apptainer");
        return;
    }
    let who = Who::User;
    let image = image_of(who);
    let root = image.root();
    image.file("etc/hosts", "").file("etc/localtime", "").file("etc/resolv.conf", "");
    let over = image.beside().join("over");
    fs::create_dir(&over).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&over, Some(who.account().uid), Some(who.account().gid)).unwrap();
    }
    let bind = format!("{0},/usr/share/zoneinfo/Etc/UTC:/etc/localtime", image.beside().display());
    let theirs = |line: &str| {
        let line = ["apptainer", "exec", "--overlay", text(&over), text(&root), "sh", "-c", line];
        let line = line.map(String::from);
        let run = Run::launch(who, [text(&apptainer)]).args(line).env("HPC_LAUNCH_BINDS", &bind);
        run.limit(Duration::from_secs(120)).run().good()
    };
    let ours = |line: &str| shell(who, &image.root(), &[text(&over)], line).run().good();
    theirs("echo of theirs >/theirs; rm /data");
    ours("cat /theirs; test -e /data || echo gone; echo of ours >/ours").prints("of theirs\ngone");
    theirs("cat /ours; rm /theirs").prints("of ours");
    ours("test -e /theirs || cat /ours").prints("of ours");
}
