//! `hpc-launch check`: would it run, and why not?

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hpc_launch_tests::host::{self, everyone};
use hpc_launch_tests::image::Throwaway;
use hpc_launch_tests::run::{Outcome, Run};
use serde_json::Value;

/// `check` of a command in an image.
fn check(who: host::Who, options: &[&str], image: &Path, command: &[&str]) -> Outcome {
    let options = ["check"].iter().chain(options).copied();
    let image = image.to_str().expect("text");
    Run::launch(who, options.chain([image]).chain(command.iter().copied())).run()
}

const RING: &[&str] = &["/opt/examples/ring"];

#[test]
fn every_image_under_every_launcher() {
    // By rows: images; by columns: launchers under which their MPI finds its siblings by itself.
    let fits: &[(&str, &str, &[&str])] = &[
        ("bullseye-openmpi", "Open MPI 4.1.0", &["openmpi", "slurm-pmix", "none"]),
        ("bookworm-openmpi", "Open MPI 4.1.4", &["openmpi", "slurm-pmix", "none"]),
        ("trixie-openmpi", "Open MPI 5.0.7", &["openmpi", "prrte", "slurm-pmix", "none"]),
        ("bullseye-mpich", "MPICH 3.4.1", &["hydra", "slurm-pmi2", "none"]),
        ("bookworm-mpich", "MPICH 4.0.2", &["hydra", "slurm-pmi2", "none"]),
        ("trixie-mpich", "MPICH 4.2.1", &["hydra", "slurm-pmi2", "none"]),
        ("bookworm-mpich.sqfs", "MPICH 4.0.2", &["hydra", "slurm-pmi2", "none"]),
    ];
    for (image, mpi, good) in fits {
        for launcher in ["openmpi", "prrte", "hydra", "slurm-pmi2", "slurm-pmix", "slurm-none", "none"] {
            let outcome = check(host::Who::User, &["--launcher", launcher], &host::image(image), RING);
            if launcher != "slurm-none" {
                assert_eq!(outcome.code(), Some(0), "{outcome}");
                assert!(outcome.out().starts_with("yes: it would run "), "{outcome}");
                let (bridged, cost) = (", bridged by a helper on each node", "over TCP");
                assert_eq!(outcome.out().contains(bridged), !good.contains(&launcher), "{outcome}");
                assert_eq!(outcome.out().contains(cost), !good.contains(&launcher), "{outcome}");
            } else {
                // On how many nodes is not said: without any PMI they could not find each other.
                assert_eq!(outcome.code(), Some(125), "{outcome}");
                assert!(outcome.out().starts_with("no: it would not run under "), "{outcome}");
                assert!(outcome.out().contains("[pmi-mismatch]"), "{outcome}");
                assert!(outcome.out().contains("what to do: "), "{outcome}");
            }
            assert!(outcome.out().contains(mpi), "{outcome}");
            assert!(outcome.err().is_empty(), "{outcome}");
        }
    }
}

#[test]
fn json_is_as_the_schema_says() {
    let schema: Value = serde_json::from_str(include_str!("../../docs/check.schema.json")).expect("a schema");
    let names = |value: &Value| value.as_object().map(|o| o.keys().cloned().collect::<BTreeSet<_>>());
    for who in everyone() {
        let outcome = check(*who, &["--json", "--launcher=openmpi"], &host::image("trixie-openmpi"), RING);
        let told: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        assert_eq!(names(&told), names(&schema["properties"]), "{told:#}");
        assert_eq!(names(&told["mpi"]), names(&schema["properties"]["mpi"]["properties"]), "{told:#}");
        let item = |list: &str| names(&schema["properties"][list]["items"]["properties"]);
        assert_eq!(names(&told["links"][0]), item("links"));
        assert_eq!(
            names(&told["host_mpi"]),
            names(&schema["properties"]["host_mpi"]["properties"]),
            "{told:#}"
        );
        assert_eq!(names(&told["injected"][0]), item("injected"));
        assert_eq!((&told["version"], &told["verdict"]), (&1.into(), &"inject".into()));
        assert_eq!(told["launcher"]["name"], "Open MPI 4's mpirun");
        let links = told["links"].as_array().expect("links");
        let libmpi = links.iter().position(|l| l["name"] == "libmpi.so.40").expect("libmpi.so.40");
        assert_eq!(links[libmpi]["needed_by"], Value::Null, "the program needs it");
        // As the host's libmpi needs it: the image's, of Open MPI 5, knows none.
        assert!(
            links.iter().any(|l| l["needed_by"] == libmpi && l["name"] == "libopen-rte.so.40"),
            "{told:#}"
        );

        let outcome = check(
            *who,
            &["--launcher=hydra"],
            &host::image("trixie-openmpi"),
            &["/opt/examples/ring", "--json"],
        );
        let told: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        assert_eq!((outcome.code(), &told["verdict"]), (Some(0), &"bridge".into()));
        assert_eq!((&told["mpi"]["version"], &told["host_mpi"]), (&"5.0.7".into(), &Value::Null));

        let outcome = check(
            *who,
            &["--launcher=slurm-none"],
            &host::image("trixie-openmpi"),
            &["/opt/examples/ring", "--json"],
        );
        let told: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        assert_eq!((outcome.code(), &told["verdict"]), (Some(125), &"refuse".into()));
        assert_eq!(names(&told["reasons"][0]), item("reasons"));
        assert_eq!(told["reasons"][0]["code"], "pmi-mismatch");
    }
}

/// Builds a program into an image that has the C library and what the program needs but `without`.
fn build(script: &str) -> Throwaway {
    let image = Throwaway::new();
    let output =
        Command::new("/bin/sh").args(["-euc", script]).current_dir(image.root()).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}

#[test]
fn what_would_fail_before_main_is_named() {
    let image = build(
        "echo 'int a(void) { return 0; } int b(void) { return 0; }' | gcc -xc - -shared -fPIC -o lib/liba.so
         echo 'int a(void); int b(void); int main(void) { return a() + b(); }' | gcc -xc - -xnone -o bin/p lib/liba.so -Wl,-soname,x
         echo 'int b(void); int c(void) { return b(); }' | gcc -xc - -shared -fPIC -o lib/libc1.so
         echo 'int c(void); int main(void) { return c(); }' | gcc -xc - -o bin/latent -Llib -lc1 -Wl,--allow-shlib-undefined
         rm lib/liba.so
         cp bin/p bin/absolute; sed -i 's#lib/liba.so#LIB/liba.so#' bin/p",
    );
    let outcome = check(host::Who::Root, &[], &image.root(), &["/bin/p"]);
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    assert!(outcome.out().contains("[library-missing] /bin/p needs LIB/liba.so"), "{outcome}");
    // It is there now, without b.
    let output = Command::new("/bin/sh")
        .args(["-c", "mkdir LIB; echo 'int a(void) { return 0; }' | gcc -xc - -shared -fPIC -o LIB/liba.so"])
        .current_dir(image.root())
        .output()
        .expect("a shell");
    assert!(output.status.success());
    let outcome = check(host::Who::Root, &["--workdir=/"], &image.root(), &["/bin/p"]);
    assert!(
        outcome.out().contains("[symbol-missing] /bin/p needs the symbol b, which is nowhere"),
        "{outcome}"
    );
    // Whether it ever calls b nobody knows: said, and no reason to refuse.
    let outcome = check(host::Who::Root, &["--env=LD_LIBRARY_PATH=/lib"], &image.root(), &["/bin/latent"]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert!(outcome.out().contains("note: 1 symbols are nowhere"), "{outcome}");
    image.file("lib/libc1.so", "INPUT(libc1.so.1)");
    let outcome = check(host::Who::Root, &["--env=LD_LIBRARY_PATH=/lib"], &image.root(), &["/bin/latent"]);
    assert!(outcome.out().contains("[library-damaged] /lib/libc1.so is no library"), "{outcome}");
}

#[test]
fn a_program_that_is_not_there_and_one_without_mpi() {
    let image = Throwaway::new();
    for who in everyone() {
        let outcome = check(*who, &[], &image.root(), &["nowhere"]);
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(outcome.out().contains("[program-not-found]"), "{outcome}");
        let outcome = check(*who, &["-v"], &image.root(), &["cat"]);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        assert!(outcome.out().contains("without a launcher; it links no MPI\n"), "{outcome}");
        assert!(outcome.out().contains("\n  libc.so.6 => /"), "a tree: {outcome}");
        assert!(outcome.out().contains("\n    /lib64/ld-linux-x86-64.so.2 => "), "of two levels: {outcome}");
    }
}
