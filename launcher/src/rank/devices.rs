//! Devices of a rank: what of them is shown, and which are its own.

use super::Request;
use crate::cdi::{Devices, Told};
use crate::environ::Environ;
use crate::error::Result;
use crate::gpu;
use crate::host::gpu::Gpu;
use crate::nic;
use crate::plan::Change;
use crate::plan::make::Planner;
use crate::plan::sources::Sources;

impl Request {
    /// Tells a program which of the node's devices are its rank's.
    pub(super) fn own_devices(&self, gpus: &[Gpu], environ: &mut Environ) -> Vec<Change> {
        let (config, outside) = (&self.config, &self.environ);
        let rank = self.job.as_ref().map(|job| &job.rank);
        let mut changes: Vec<Change> =
            gpu::select(gpus, config, outside, rank, environ).into_iter().collect();
        let gpu = gpu::first(gpus, environ).cloned();
        changes.extend(nic::select(&nic::offered(config), gpu.as_ref(), config, outside, rank, environ));
        changes
    }
}

/// Shows what devices need, and answers what programs must be told, and what a person should know.
pub(super) fn show(
    devices: &Devices,
    told: Told,
    planner: &mut Planner,
    sources: &mut Sources,
) -> Result<(Told, Vec<String>)> {
    let (more, notes) = devices.told(planner.view());
    for want in &devices.wants {
        planner.show(want, sources)?;
    }
    Ok((told.and(more), notes))
}
