//! `abi-probe mpi`: which MPI a library is, told by what is in it and not by its name.

use std::fs;
use std::path::Path;
use std::process::Command;

use hpc_launch_tests::host;
use hpc_launch_tests::image::directory;
use serde_json::Value;

fn mpi(root: &Path, path: &str) -> Option<Value> {
    let mut command = Command::new(host::abi_probe());
    let output =
        command.args(["mpi", "--json", "--root"]).arg(root).arg(path).output().expect("abi-probe runs");
    assert_eq!(output.status.success(), !output.stdout.is_empty(), "{output:?}");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

#[test]
fn every_mpi_of_the_images() {
    for (image, library, family, version, pmi, from) in [
        ("bullseye-openmpi", "libmpi.so.40", "open-mpi", "4.1.0", "pmix", "plugin"),
        ("bookworm-openmpi", "libmpi.so.40", "open-mpi", "4.1.4", "pmix", "plugin"),
        ("trixie-openmpi", "libmpi.so.40", "open-mpi", "5.0.7", "pmix", "linked"),
        ("bullseye-mpich", "libmpich.so.12", "mpich", "3.4.1", "simple", "built-in"),
        ("bookworm-mpich", "libmpich.so.12", "mpich", "4.0.2", "simple", "built-in"),
        ("trixie-mpich", "libmpich.so.12", "mpich", "4.2.1", "simple", "built-in"),
    ] {
        let root = host::image(image);
        let told = mpi(&root, &format!("{LIBRARIES}/{library}")).expect(image);
        assert_eq!(told["family"], family, "{told}");
        assert_eq!(told["version"], version, "{told}");
        assert_eq!(told["pmi"], serde_json::json!([pmi]), "{told}");
        assert_eq!(told["pmi_from"], from, "{told}");
        let abi = if family == "mpich" { "mpich".into() } else { serde_json::json!({"open-mpi": 40}) };
        assert_eq!(told["abi"], abi, "{told}");
        // A program leads to the same library.
        assert_eq!(mpi(&root, "/opt/examples/ring").expect("linked"), told);
    }
}

#[test]
fn names_do_not_count() {
    let dir = directory("/var/tmp");
    let from = host::image("bookworm-openmpi").join("usr/lib/x86_64-linux-gnu");
    // Open MPI 1.10 had MPICH's soname.
    fs::copy(from.join("libmpi.so.40"), dir.path().join("libmpich.so.12")).unwrap();
    assert_eq!(mpi(dir.path(), "/libmpich.so.12").unwrap()["family"], "open-mpi");
    fs::copy(from.join("libmpi_mpifh.so.40"), dir.path().join("libmpi.so.12")).unwrap();
    assert_eq!(mpi(dir.path(), "/libmpi.so.12"), None, "Fortran's part is no MPI of its own");
    fs::copy(from.join("libc.so.6"), dir.path().join("libmpi.so")).unwrap();
    assert_eq!(mpi(dir.path(), "/libmpi.so"), None);
}
