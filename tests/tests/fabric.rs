//! `--fabric`: the host's UCX, libfabric and verbs beneath the image's own MPI.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::host_mpi::{inode, mapped, mapped_fabric, mapped_libc};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::run::{Outcome, Run};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A library of this host's distribution.
fn ours(name: &str) -> PathBuf {
    let path = format!("/usr/lib/{}-linux-gnu/{name}", std::env::consts::ARCH);
    fs::canonicalize(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One way over which an MPI moves data, and the library that has to be the host's then.
struct Way {
    what: &'static str,
    library: &'static str,
    variables: Vec<(&'static str, &'static str)>,
}

/// UCX over what every machine has; Open MPI has to be told that this is what is wanted.
fn ucx(what: &'static str, variables: &[(&'static str, &'static str)]) -> Way {
    let told = [
        ("OMPI_MCA_pml", "ucx"),
        ("OMPI_MCA_osc", "^ucx"),
        ("OMPI_MCA_pml_ucx_tls", "any"),
        ("OMPI_MCA_pml_ucx_devices", "any"),
    ];
    Way { what, library: UCX, variables: [&told, variables].concat() }
}

const UCX: &str = "libucp.so.0";

/// Within a node.
fn ucx_memory() -> Way {
    ucx("UCX", &[("UCX_TLS", "self,posix,cma,tcp")])
}

fn ucx_tcp() -> Way {
    ucx("UCX, tcp", &[("UCX_TLS", "self,tcp"), ("UCX_NET_DEVICES", "lo")])
}

fn libfabric() -> Way {
    Way {
        what: "libfabric, tcp",
        library: "libfabric.so.1",
        variables: vec![
            ("OMPI_MCA_pml", "cm"),
            ("OMPI_MCA_mtl", "ofi"),
            ("OMPI_MCA_mtl_ofi_provider_include", "tcp"),
            ("FI_TCP_IFACE", "lo"),
        ],
    }
}

impl Way {
    /// Two ranks of the image's own MPI over it, under hydra.
    fn run(&self, who: Who, options: &[&str], image: &str, program: &str) -> Outcome {
        let image = host::image(image);
        let options = ["--mpi=bridge"].iter().chain(options).copied();
        let mut run = Run::hydra(who, 2, options.chain([text(&image), program]));
        for (name, value) in &self.variables {
            run = run.env(name, value);
        }
        run.env("HPC_LAUNCH_DECISIONS", "none").run().good()
    }
}

/// Machines have fabric devices, or not: these tests say which.
fn with_devices(run: Run) -> Run {
    run.prelude(
        "mkdir -p /tmp/hpc-launch-class && mount -t tmpfs none /tmp/hpc-launch-class \
         && for c in /sys/class/*; do mkdir -p /tmp/hpc-launch-class/${c##*/} \
         && mount --bind $c /tmp/hpc-launch-class/${c##*/}; done; mkdir -p /tmp/hpc-launch-class/infiniband/mlx5_7 \
         && mount --rbind /tmp/hpc-launch-class /sys/class",
    )
}

#[test]
fn the_hosts_lie_beneath_an_older_or_equal_images_mpi() {
    for (image, way, is_old) in [
        ("bullseye-openmpi", ucx_memory(), true),
        ("bullseye-openmpi", libfabric(), true),
        ("bookworm-openmpi", ucx_tcp(), false),
        ("bookworm-openmpi", libfabric(), false),
        ("bookworm-mpich", ucx_memory(), false),
    ] {
        for who in everyone() {
            let outcome = way.run(*who, &["--fabric=host"], image, "/opt/examples/whose");
            let about = format!("{image}, {}\n{outcome}", way.what);
            let libraries = mapped_fabric(&outcome, way.library);
            assert_eq!(libraries, BTreeSet::from([inode(&ours(way.library))]), "{about}");
            let mpis: BTreeSet<u64> = mapped(&outcome).iter().map(|(n, _)| *n).collect();
            let hosts = ["libmpi.so.40", "libmpich.so.12"].map(|name| inode(&ours(name)));
            assert!(!mpis.is_empty() && !mpis.iter().any(|n| hosts.contains(n)), "{about}");
            // One C library, and the host's where the host's libraries are built for a newer one.
            let libcs: Vec<u64> = mapped_libc(&outcome).iter().map(|(n, _)| *n).collect();
            assert_eq!(libcs == [inode(&ours("libc.so.6"))], is_old, "{about}");
            assert_eq!(libcs.len(), 1, "{about}");
            // Without it the same way leads through the image's, where there is one: UCX 1.10 gives up on a machine
            // that has no device for its connection manager.
            if is_old && way.library == UCX {
                continue;
            }
            let outcome = way.run(*who, &["--fabric=image"], image, "/opt/examples/whose");
            let libraries = mapped_fabric(&outcome, way.library);
            assert!(!libraries.is_empty() && !libraries.contains(&inode(&ours(way.library))), "{outcome}");
        }
        let outcome = way.run(Who::User, &["--fabric=host"], image, "/opt/examples/wireup");
        assert!(outcome.out().contains("split put correct"), "{image}, {}\n{outcome}", way.what);
    }
}

/// Trixie's are newer than this host's: every symbol may bind, and the MPI would abort or be told ENOSYS.
#[test]
fn an_older_host_does_not_go_under_a_newer_image() {
    for (image, what) in
        [("trixie-openmpi", "the host's libfabric 1.17.0 ("), ("trixie-mpich", "the host's UCX 1.13.1 (")]
    {
        let image = host::image(image);
        let options = ["--fabric=host", "--mpi=bridge", text(&image), "/opt/examples/whose"];
        for who in everyone() {
            let outcome = Run::hydra(*who, 2, options).run();
            let newer = if what.contains("UCX") { "older than the image's UCX 1.18.1 (" } else { "2.1.0 (" };
            let outcome = outcome.says(&["[fabric-too-old]", what, newer, "--fabric=image"]);
            assert_eq!(outcome.out(), "", "{outcome}");
        }
    }
}

fn plan(who: Who, devices: bool, options: &[&str], image: &str) -> Value {
    let image = host::image(image);
    let arguments = ["plan", "--json", "--mpi=bridge"].iter().chain(options).copied();
    let arguments: Vec<&str> = arguments.chain([text(&image), "/opt/examples/whose"]).collect();
    let run = Run::hydra(who, 1, arguments);
    let run = if devices { with_devices(run) } else { run };
    let outcome = run.run().good();
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"))
}

fn stacks(plan: &Value) -> Vec<&str> {
    let fabrics = plan["fabrics"].as_array().expect("a list");
    fabrics.iter().filter_map(|f| f["stack"].as_str()).collect()
}

#[test]
fn auto_takes_the_hosts_only_where_there_are_devices() {
    if !is_root() {
        eprintln!("skipped: only root can make a device's directory appear");
        return;
    }
    for who in everyone() {
        let without = plan(*who, false, &[], "bullseye-openmpi");
        assert_eq!(stacks(&without), Vec::<&str>::new(), "{without}");
        let with = plan(*who, true, &[], "bullseye-openmpi");
        assert_eq!(stacks(&with), ["UCX", "libfabric", "PSM", "verbs"], "{with}");
        let ucx = &with["fabrics"][0];
        assert_eq!(
            (ucx["host"]["release"].as_str(), ucx["image"]["release"].as_str()),
            (Some("1.13.1"), Some("1.10.0"))
        );
        assert_eq!(ucx["host"]["library"].as_str(), ours("libucp.so.0").to_str());
        let binds = with["steps"].to_string();
        assert!(
            binds.contains("\"libucp.so.0\"") && binds.contains("the host's UCX, which stays whole"),
            "{binds}"
        );
        // A newer image keeps its own, and that is said with the reason.
        let newer = plan(*who, true, &[], "trixie-openmpi");
        assert_eq!(stacks(&newer), Vec::<&str>::new(), "{newer}");
        let notes = newer["notes"].to_string();
        assert!(notes.contains("the host's fabric libraries are not used: the host's UCX 1.13.1"), "{notes}");
        assert_eq!(stacks(&plan(*who, true, &["--fabric=image"], "bullseye-openmpi")), Vec::<&str>::new());
        // An image whose MPI uses no fabric, and a program without any MPI, get nothing, in silence.
        let none = plan(*who, true, &[], "bullseye-mpich");
        assert!(stacks(&none).is_empty() && !none["notes"].to_string().contains("fabric"), "{none}");
    }
}

/// For comparison: MPIs are told to keep away from adapters, but for what somebody says by a variable.
#[test]
fn none_keeps_away_from_adapters() {
    for who in everyone() {
        let image = host::image("bookworm-openmpi");
        let line = ["-n", "2", "--oversubscribe", "--fabric=none", "--mpi=bridge", text(&image)];
        let look = ["sh", "-c", "echo $UCX_TLS $FI_PROVIDER $OMPI_MCA_btl"];
        let outcome =
            Run::launch(*who, line.iter().chain(&look).copied()).env("FI_PROVIDER", "mine").run().good();
        assert_eq!(outcome.out(), "self,sm,tcp mine ^openib,usnic\n".repeat(2), "{outcome}");
        for image in ["bullseye-openmpi", "bookworm-mpich", "trixie-openmpi"] {
            let image = host::image(image);
            let line = ["-n", "2", "--oversubscribe", "--fabric=none", "--mpi=bridge", text(&image)];
            let outcome = Run::launch(*who, line.iter().copied().chain(["/opt/examples/ring"])).run();
            outcome.good().says(&[]).prints("ring of 2 ranks: sum 1 correct");
        }
    }
}

/// Jobs with and without it are different sandboxes, and decisions of one are not the other's.
#[test]
fn decisions_are_kept_apart() {
    let cache = directory("/var/tmp");
    Command::new("chmod").arg("1777").arg(cache.path()).status().expect("chmod");
    let kept = cache.path().join("kept");
    for (option, is_hosts) in [("--fabric=host", true), ("--fabric=image", false), ("--fabric=host", true)] {
        let image = host::image("bookworm-mpich");
        let arguments = ["--mpi=bridge", option, text(&image), "/opt/examples/whose"];
        let run = Run::hydra(Who::User, 2, arguments).env("HPC_LAUNCH_DECISIONS", &kept);
        let outcome = run.run().good();
        let libraries = mapped_fabric(&outcome, "libucp.so.0");
        assert_eq!(libraries.contains(&inode(&ours("libucp.so.0"))), is_hosts, "{option}\n{outcome}");
    }
    assert_eq!(fs::read_dir(&kept).expect("decisions were kept").count(), 2);
}

/// A program with a UCX of its own, found by RPATH before everything else; it links no MPI.
#[test]
fn a_copy_that_is_found_first_is_covered() {
    let dir = directory("/var/tmp");
    let lib = dir.path().join("lib");
    fs::create_dir(&lib).expect("a directory");
    let donor = host::image("bullseye-openmpi").join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    for name in ["libucp.so.0", "libuct.so.0", "libucs.so.0", "libucm.so.0"] {
        fs::copy(donor.join(name), lib.join(name)).expect("a copy");
    }
    let source = "#include <stdio.h>\nextern const char *ucp_get_version_string(void);\n\
                  int main(void) { puts(ucp_get_version_string()); return 0; }\n";
    fs::write(dir.path().join("release.c"), source).expect("written");
    let script = "cc release.c -o release -L lib -l:libucp.so.0 -Wl,--allow-shlib-undefined \
                  -Wl,--disable-new-dtags,-rpath,/opt/app/lib && chmod -R a+rX .";
    let status = Command::new("sh").args(["-c", script]).current_dir(dir.path()).status().expect("sh");
    assert!(status.success());
    let bind = format!("{}:/opt/app:ro", dir.path().display());
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        for (option, release) in [("--fabric=auto", "1.10.0"), ("--fabric=host", "1.13.1")] {
            Run::launch(*who, [option, "--bind", &bind, text(&image), "/opt/app/release"])
                .run()
                .prints(release);
        }
    }
}

/// Trixie's libmlx5 on bookworm's libibverbs: equal numbers of the private interface, and a symbol that is nowhere.
#[test]
fn a_mixture_of_two_releases_is_named_and_never_made() {
    let triple = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let newer = fs::canonicalize(host::image("trixie-mpich").join(&triple).join("libmlx5.so.1"))
        .expect("in the image");
    let dir = directory("/var/tmp");
    let script = format!(
        "echo 'int main(void) {{ return 0; }}' > m.c && cc m.c -o program -Wl,--no-as-needed -Wl,--allow-shlib-undefined \
         -L {0} -l:libmlx5.so.1 -l:libibverbs.so.1 && chmod -R a+rX .",
        host::image("bookworm-mpich").join(&triple).display()
    );
    let made = Command::new("sh").args(["-euc", &script]).current_dir(dir.path()).status();
    assert!(made.expect("a shell").success());
    let image = host::image("bookworm-mpich");
    let old = fs::canonicalize(image.join(&triple).join("libmlx5.so.1")).expect("in the image");
    let at = Path::new("/").join(&triple).join(old.file_name().expect("a name"));
    let (app, mixed) =
        (format!("{}:/opt/app:ro", dir.path().display()), format!("{}:{}:ro", newer.display(), at.display()));
    let check = |options: &[&str]| {
        let bound = ["check", "-v", "--bind", &app, "--bind", &mixed];
        let arguments = bound.iter().chain(options).copied();
        Run::launch(Who::User, arguments.chain([text(&image), "/opt/app/program"])).run()
    };
    // Forced by hand it is seen, with the file and the symbol.
    let outcome = check(&[]);
    assert!(
        outcome.out().contains("ibv_cmd_create_cq_ex2") && outcome.out().contains("libmlx5.so"),
        "{outcome}"
    );
    // The host's set is whole: nothing of another release is left to be loaded.
    let outcome = check(&["--fabric=host"]).good();
    assert!(!outcome.out().contains("ibv_cmd_create_cq_ex2"), "{outcome}");
    let whole = |name: &str| format!("{name} => /run/hpc-launch/lib/{name}");
    for name in ["libmlx5.so.1", "libibverbs.so.1"] {
        assert!(outcome.out().contains(&whole(name)), "{name}\n{outcome}");
    }
}

#[test]
fn who_insists_is_told_why_not() {
    let image = |name: &str| host::image(name);
    let run = |who: Who, image: &Path, program: &str| {
        Run::hydra(who, 1, ["--fabric=host", "--mpi=bridge", text(image), program]).run()
    };
    for who in everyone() {
        run(*who, &image("bullseye-mpich"), "/opt/examples/whose").refused(
            "host-fabric-missing",
            &[
                "--fabric=host (--fabric): MPICH 3.4.1 (",
                "loads no library of a fabric (UCX, libfabric, PSM, verbs)",
            ],
        );
        let other = Throwaway::new();
        let script = "echo 'int main(void) { return 0; }' > m.c && cc -static m.c -o bin/static \
                      && musl-gcc m.c -o bin/musl && cp -L /lib/ld-musl-*.so.1 lib/ && rm m.c";
        let made = Command::new("sh").args(["-euc", script]).current_dir(other.root()).status();
        assert!(made.expect("a shell").success());
        for (program, said) in [("/bin/static", "is statically linked"), ("/bin/musl", "/lib/ld-musl-")] {
            let outcome = Run::launch(*who, ["--fabric=host", text(&other.root()), program]).run();
            outcome.refused("not-injectable", &[said]);
        }
    }
    // Where the host's MPI is used, its fabrics are: nobody keeps the image's by asking.
    let outcome = Run::mpirun(
        Who::User,
        1,
        ["--fabric=image", text(&image("bookworm-openmpi")), "/opt/examples/whose"],
    );
    outcome.run().good().says(&["warning: --fabric=image (--fabric) changes nothing", "--mpi=bridge"]);
    let outcome =
        Run::launch(Who::User, [text(&image("bookworm-openmpi")), "true"]).env("HPC_LAUNCH_FABRIC", "fast");
    outcome
        .run()
        .refused("config-invalid", &["HPC_LAUNCH_FABRIC", "\"fast\" is none of auto, host, image and none"]);
}

#[test]
fn check_and_lock_name_them() {
    let image = host::image("bullseye-openmpi");
    let arguments = ["--fabric=host", "--mpi=bridge", text(&image), "/opt/examples/whose"];
    let check = ["check", "--launcher=hydra"].iter().chain(&arguments).copied();
    let outcome = Run::launch(Who::User, check).run().good();
    let said = outcome.out();
    for part in [
        "  fabric: the host's UCX 1.13.1 (",
        "), in the place of the image's 1.10.0",
        "  fabric: the host's verbs (",
    ] {
        assert!(said.contains(part), "{part}\n{outcome}");
    }
    let dir = directory("/var/tmp");
    Command::new("chmod").arg("1777").arg(dir.path()).status().expect("chmod");
    let file = dir.path().join("lock");
    let lock = |options: &[&str]| {
        let arguments = ["plan"].iter().chain(options).chain(&arguments).copied().collect::<Vec<_>>();
        Run::launch(Who::User, arguments).run()
    };
    lock(&["--lock", text(&file)]).good();
    let written: Value = serde_json::from_slice(&fs::read(&file).expect("a lock")).expect("JSON");
    assert!(written["host_mpi"].is_null(), "{written}");
    assert!(written["host_fabrics"][0].as_str().is_some_and(|f| f.starts_with("UCX 1.13.1 (")), "{written}");
    assert!(
        written["files"].as_object().is_some_and(|f| f.keys().any(|k| k.ends_with("/libucp.so.0"))),
        "{written}"
    );
    lock(&["--diff", text(&file)]).good();
}
