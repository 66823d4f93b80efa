//! Compiles the example solvers with a release's own compilers, against either of its MPIs or one in a tree.

use crate::recipe::{Examples, Mpi};
use crate::{rootfs, run};
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Compiles what belongs into an image with this MPI, or with none, in the toolchain root, and copies the
/// programs to the new directory `to`. `tree` holds an MPI that the toolchain does not.
pub fn compile(
    toolchain: &Path,
    tree: Option<&Path>,
    examples: &Examples,
    mpi: Option<Mpi>,
    to: &Path,
    log: &Path,
) -> Result<()> {
    let dir = toolchain.join("build");
    crate::cache::remove(&dir)?;
    fs::create_dir_all(dir.join("out"))?;
    if let Some(tree) = tree {
        run::output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(tree).arg(dir.join("mpi")))?;
    }
    let mut script = String::from("cd /build\n");
    for (name, text) in &examples.sources {
        fs::write(dir.join(name), text)?;
        for line in compile_lines(name, text, mpi) {
            script.push_str(&line);
            script.push('\n');
        }
    }
    run::logged(&mut rootfs::enter(toolchain, &script), log)?;
    run::output(Command::new("cp").arg("-r").arg(dir.join("out")).arg(to))?;
    if fs::read_dir(to)?.next().is_none() {
        bail!("there are no examples to compile");
    }
    crate::cache::remove(&dir)
}

/// How one source is compiled for an image, if it belongs there.
fn compile_lines(name: &str, text: &str, mpi: Option<Mpi>) -> Vec<String> {
    let Some((stem, ending)) = name.rsplit_once('.') else { return Vec::new() };
    let c = "-std=gnu11 -O2 -Wall -Werror";
    let needs_mpi = ending != "c" || text.contains("#include <mpi.h>");
    match mpi {
        Some(mpi) if needs_mpi && ending == "c" => {
            let mut lines = vec![match mpi {
                // Its own mpicc would have the programs look where it lies now.
                Mpi::Tree(_) => format!("gcc {c} -Impi/include -o out/{stem} {name} mpi/lib/libmpi.so.12"),
                _ => format!("mpicc.{} {c} -o out/{stem} {name}", mpi.name()),
            }];
            if text.contains("#ifdef OPENS_MPI") {
                lines.push(format!("gcc {c} -DOPENS_MPI -o out/opens {name} -ldl"));
            }
            lines
        }
        Some(Mpi::Mpich) if ending == "cc" => vec![format!("mpicxx.mpich -O2 -o out/{stem} {name}")],
        // Open MPI 5 has no C++ bindings.
        Some(Mpi::OpenMpi) if ending == "cc" => vec![format!(
            "test ! -e /usr/lib/*/libmpi_cxx.so.40 || g++ -O2 -o out/{stem} {name} $(mpicc.openmpi --showme:compile) \
             -l:libmpi_cxx.so.40 $(mpicc.openmpi --showme:link)"
        )],
        Some(Mpi::Mpich) if needs_mpi => vec![format!("mpif90.mpich -O2 -o out/{stem} {name}")],
        // Debian's Fortran wrapper finds libmpi.so through a link that only its package script makes;
        // the C wrapper knows the directory.
        Some(Mpi::OpenMpi) if needs_mpi => {
            vec![format!("mpif90.openmpi -O2 -o out/{stem} {name} $(mpicc.openmpi --showme:link)")]
        }
        // Of use in every image, to see what a rank was given before any MPI is involved.
        _ if stem == "hello_libc" => vec![
            format!("gcc {c} -o out/hello_libc {name}"),
            format!("gcc {c} -static -o out/hello_static {name}"),
        ],
        None if text.contains("NO_MPI") => vec![format!("gcc {c} -DNO_MPI -o out/{stem} {name}")],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe;

    #[test]
    fn each_image_gets_what_it_can_run() {
        let mpich = Some(Mpi::Mpich);
        let solver = "#include <mpi.h>\n";
        assert!(compile_lines("ring.c", solver, mpich)[0].starts_with("mpicc.mpich "));
        assert!(compile_lines("ring_f.f90", "", mpich)[0].starts_with("mpif90.mpich "));
        let tree = recipe::named("bookworm-intel", Mpi::Mpich).unwrap().content.mpi();
        assert!(compile_lines("ring.c", solver, tree)[0].ends_with(" mpi/lib/libmpi.so.12"));
        assert_eq!(compile_lines("ring_f.f90", "", tree), Vec::<String>::new());
        assert_eq!(compile_lines("ring.c", solver, None), Vec::<String>::new());
        assert_eq!(compile_lines("hello_libc.c", "", None).len(), 2);
        let both = "#ifndef NO_MPI\n#include <mpi.h>\n";
        assert!(compile_lines("signals.c", both, None)[0].contains("-DNO_MPI"));
    }
}
