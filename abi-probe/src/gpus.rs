//! Whether an MPI sends what lies in a GPU's memory: then a program may hand it such buffers, and one that does crashes
//! with an MPI that does not.

use crate::error::Result;
use crate::install::Installation;
use crate::parts;
use crate::prober::Prober;

/// Plugins of Open MPI that are built only for that (opal/mca/accelerator of 5; ompi/mca/coll/cuda and opal/mca/btl/smcuda
/// of 4).
const PLUGINS: &[&str] = &[
    "mca_accelerator_cuda.so",
    "mca_accelerator_rocm.so",
    "mca_accelerator_ze.so",
    "mca_coll_cuda.so",
    "mca_btl_smcuda.so",
];
/// Defined only by a core that is built for that (opal/datatype/opal_datatype_cuda.c of Open MPI 4).
const SYMBOL: &str = "mca_cuda_convertor_init";
/// What the others are linked with: CUDA, ROCm, Level Zero, and Cray's transport layer for GPUs.
const LIBRARIES: &[&str] =
    &["libcuda.so.", "libcudart.so.", "libamdhip64.so.", "libze_loader.so.", "libmpi_gtl_"];

/// What shows that it does; none: nothing does. `side` is where it is installed.
pub fn evidence(side: &Prober, installation: &Installation) -> Result<Option<String>> {
    let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let plugin =
        installation.own_plugins().map(|path| name(path)).find(|name| PLUGINS.contains(&name.as_str()));
    if plugin.is_some() {
        return Ok(plugin);
    }
    let libraries = installation.libraries.iter().map(|(name, library)| (name, &library.file));
    for (name, file) in libraries.chain(&installation.parts) {
        if parts::stem(name).0 == "libopen-pal" && side.symbols(file)?.defines(SYMBOL) {
            return Ok(Some(format!("{name} defines {SYMBOL}")));
        }
    }
    let own = std::iter::once(&installation.core).chain(installation.parts.values());
    let needed = own.flat_map(|file| file.object.needed.iter().map(move |needed| (file, needed)));
    let found =
        needed.into_iter().find(|(_, needed)| LIBRARIES.iter().any(|prefix| needed.starts_with(prefix)));
    Ok(found.map(|(file, needed)| format!("{} needs {}", name(&file.path), needed.escape_debug())))
}
