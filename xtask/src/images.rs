//! Test images: from recipe to `target/images/NAME`, as a directory and as a SquashFS file.

use crate::apt::Apt;
use crate::cache::{Builder, Cache};
use crate::layout::{Layout, link_to};
use crate::recipe::{self, Content, Examples, Mpi, Recipe, Suite, Tree};
use crate::{rootfs, run, toolchain, wheel};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// One image that was asked for: a name, and what it stands for.
struct Wanted {
    name: String,
    recipe: &'static Recipe,
    /// What it is called in the cache.
    cached: String,
}

/// Makes the named images, or all, with SquashFS files on request.
pub fn make(layout: &Layout, names: &[String], squashfs: bool) -> Result<()> {
    let examples = Examples::read(&layout.root.join("examples"))?;
    let host = host_mpi();
    let names = match names {
        [] => recipe::names().iter().map(ToString::to_string).collect(),
        _ => names.to_vec(),
    };
    let mut wanted = Vec::new();
    for name in names {
        let recipe = recipe::named(&name, host)?;
        let key = recipe::key((recipe, recipe.packages(), recipe.suite.toolchain(), &examples));
        wanted.push(Wanted { name, recipe, cached: format!("{}-{key}", recipe.name) });
    }

    let cache = Cache::open()?;
    let missing = |image: &Wanted| {
        cache.find("images", &image.cached).is_none()
            || squashfs && cache.find("images", &squashfs_name(image)).is_none()
    };
    if wanted.iter().any(missing) {
        run::step("test images, from Debian packages", || {
            let builder = cache.builder()?;
            build(layout, &builder, &examples, &wanted, squashfs)?;
            builder.prune()
        })?;
    }
    for image in &wanted {
        if image.recipe.is_optional() && missing(image) {
            continue;
        }
        link(layout, &cache, &image.cached, &image.name)?;
        if squashfs {
            link(layout, &cache, &squashfs_name(image), &format!("{}.sqfs", image.name))?;
        }
    }
    Ok(())
}

/// The MPI that `mpirun` belongs to here; Open MPI where there is none yet, as set-up installs that.
pub fn host_mpi() -> Mpi {
    let version = run::output(Command::new("mpirun").arg("--version")).unwrap_or_default();
    if version.contains("HYDRA") { Mpi::Mpich } else { Mpi::OpenMpi }
}

fn squashfs_name(image: &Wanted) -> String {
    format!("{}.sqfs", image.cached)
}

/// Builds what is missing: releases beside each other, the images of one after each other.
fn build(
    layout: &Layout,
    builder: &Builder,
    examples: &Examples,
    wanted: &[Wanted],
    squashfs: bool,
) -> Result<()> {
    let mut suites: Vec<&'static Suite> = Vec::new();
    for image in wanted {
        if !suites.contains(&image.recipe.suite) {
            suites.push(image.recipe.suite);
        }
    }
    let build_suite = |suite: &'static Suite| -> Result<()> {
        let log = layout.log(&format!("images-{}", suite.name))?;
        let workshop = Workshop { layout, builder, suite, examples, log };
        for image in wanted.iter().filter(|image| image.recipe.suite == suite) {
            let made = workshop
                .image(image)
                .and_then(|root| if squashfs { workshop.squashfs(image, &root).map(drop) } else { Ok(()) });
            match made.with_context(|| format!("image {}", image.name)) {
                Err(e) if image.recipe.is_optional() => eprintln!("    goes without: {e:#}"),
                other => other?,
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            suites.into_iter().map(|suite| scope.spawn(move || build_suite(suite))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("an image thread panicked"))
    })
}

/// Builds the images of one release.
struct Workshop<'a> {
    layout: &'a Layout,
    builder: &'a Builder,
    suite: &'static Suite,
    examples: &'a Examples,
    log: PathBuf,
}

impl Workshop<'_> {
    /// The image: an unpacked root, which changes with the packages only, and the programs, which
    /// change with the sources.
    fn image(&self, image: &Wanted) -> Result<PathBuf> {
        let recipe = image.recipe;
        self.builder.ensure("images", &image.cached, |path| {
            let base = self.root(recipe.name, &recipe.packages())?;
            run::output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(base).arg(path))?;
            if recipe.content != Content::Apptainer {
                self.add_programs(recipe.content, path)?;
            }
            run::output(Command::new("chmod").args(["-R", "a+rX"]).arg(path))?;
            eprintln!("    made {}", recipe.name);
            Ok(())
        })
    }

    /// The examples, and what they or Python's need.
    fn add_programs(&self, content: Content, path: &Path) -> Result<()> {
        let (programs, to) = (self.programs(content.mpi())?, path.join("opt/examples"));
        run::output(Command::new("cp").args(["-rT"]).arg(programs).arg(to))?;
        if let Some(Mpi::Tree(tree)) = content.mpi() {
            self.tree(tree, path)?;
        }
        if matches!(content, Content::Python(_)) {
            self.virtual_environment(&path.join("opt/venv"))?;
            let tests = self.mpi4py_tests()?;
            run::output(Command::new("cp").arg("-r").arg(tests).arg(path.join("opt/mpi4py-test")))?;
        }
        Ok(())
    }

    /// As `python3 -m venv` and pip lay it out (PEP 405), without running the image's Python.
    fn virtual_environment(&self, path: &Path) -> Result<()> {
        let (version, python) = recipe::MPI4PY;
        let site = path.join(format!("lib/python{python}/site-packages"));
        fs::create_dir_all(path.join("bin"))?;
        symlink("/usr/bin/python3", path.join("bin/python3"))?;
        fs::write(path.join("pyvenv.cfg"), "home = /usr/bin\ninclude-system-site-packages = false\n")?;
        let of = ["--python-version", python, "--implementation", "cp"];
        wheel::unpack("mpi4py", version, &of, &site, &self.log)
    }

    /// `python3 main.py` runs them.
    fn mpi4py_tests(&self) -> Result<PathBuf> {
        let (version, _) = recipe::MPI4PY;
        self.builder.ensure("parts", &format!("mpi4py-tests-{version}"), |path| {
            wheel::unpack_source("mpi4py", version, "test", path, &self.log)
        })
    }

    /// Lays an MPI into an image and tells its loader.
    fn tree(&self, tree: &Tree, image: &Path) -> Result<()> {
        let to = image.join(tree.prefix);
        fs::create_dir_all(&to)?;
        let mut cp = Command::new("cp");
        cp.current_dir(tree.host.tree(self.layout, self.builder)?);
        run::output(cp.args(["-a", "--parents", "--reflink=auto"]).args(tree.parts).arg(to))?;
        fs::write(image.join("etc/ld.so.conf.d/mpi.conf"), format!("/{}/lib\n", tree.prefix))?;
        rootfs::ldconfig(image)
    }

    fn squashfs(&self, image: &Wanted, root: &Path) -> Result<PathBuf> {
        self.builder.ensure("images", &squashfs_name(image), |path| {
            let mut command = Command::new("mksquashfs");
            command.arg(root).arg(path);
            // lz4 packs in a thirtieth of zstd's time.
            command.args(["-comp", "lz4", "-all-root", "-no-xattrs", "-noappend", "-no-progress", "-quiet"]);
            run::logged(&mut command, &self.log).context("mksquashfs is in the package squashfs-tools")?;
            eprintln!("    made {}.sqfs", image.recipe.name);
            Ok(())
        })
    }

    fn root(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let part = format!("{name}-root-{}", recipe::key((self.suite, packages)));
        self.builder.ensure("parts", &part, |path| {
            let apt =
                Apt::open(self.builder.dir.join("apt").join(self.suite.name), self.suite, self.log.clone())?;
            rootfs::unpack(&apt.fetch(packages)?, path, self.suite.merged_usr)
        })
    }

    fn programs(&self, mpi: Option<Mpi>) -> Result<PathBuf> {
        let packages = self.suite.toolchain();
        let kind = mpi.map_or("libc", Mpi::name);
        let with = matches!(mpi, Some(Mpi::Tree(_))).then_some(Tree::COMPILED_WITH);
        let key = recipe::key((self.suite, &packages, kind, with, self.examples));
        self.builder.ensure("parts", &format!("{}-{kind}-programs-{key}", self.suite.name), |path| {
            let tools = self.root(&format!("{}-compilers", self.suite.name), &packages)?;
            let with = with.map(|host| host.tree(self.layout, self.builder)).transpose()?;
            toolchain::compile(&tools, with.as_deref(), self.examples, mpi, path, &self.log)
        })
    }
}

/// Points `target/images/NAME` at what the cache holds.
fn link(layout: &Layout, cache: &Cache, cached: &str, name: &str) -> Result<()> {
    let to =
        cache.find("images", cached).with_context(|| format!("{cached} went from the cache, try again"))?;
    link_to(&layout.images(), name, &to)
}
