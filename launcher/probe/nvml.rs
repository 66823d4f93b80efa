//! NVML: the GPUs as the driver's management library knows them, which is another way than CUDA's.
//!
//! Signatures and numbers: nvml.h.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::c;
use crate::library::Library;
use crate::say::Line;

const MAX_GPUS: c_uint = 64;
/// Longer than any text of NVML's.
const TEXT: c_uint = 96;

type Device = *mut c_void;
type Text = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
type TextOf = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int;
type NumberOf = unsafe extern "C" fn(Device, *mut c_uint) -> c_int;
type PartOf = unsafe extern "C" fn(Device, c_uint, *mut Device) -> c_int;

/// `nvmlGpuFabricInfo_t`.
#[repr(C)]
#[derive(Default)]
struct Fabric {
    cluster: [u8; 16],
    status: c_int,
    clique: c_uint,
    state: u8,
}

struct Nvml {
    library: Library,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nvml {
    fn is_good(&self, call: &str, result: c_int) -> bool {
        if result != 0 {
            // SAFETY: it answers a constant for any number.
            let error = unsafe { (self.error)(result) };
            Line::new("failed").field("call", call).field("result", result).text("error", error).say();
        }
        result == 0
    }

    /// A function that older drivers lack.
    fn newer<F: Copy>(&self, name: &core::ffi::CStr) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: of the size of a pointer; the caller names the function of this signature.
        self.library.find(name).map(|found| unsafe { core::mem::transmute_copy(&found) })
    }

    fn uuid(&self, line: Line, device: Device, ask: TextOf) -> Line {
        let mut uuid = [0; TEXT as usize];
        // SAFETY: a buffer with its length; its last byte stays zero.
        unsafe { ask(device, uuid.as_mut_ptr(), TEXT - 1) };
        line.text("uuid", uuid.as_ptr())
    }

    fn gpu(&self, number: c_uint, device: Device, uuid: TextOf) {
        let ask = |name: &core::ffi::CStr| {
            let ask = self.newer::<NumberOf>(name)?;
            let mut value = 0;
            // SAFETY: a device, and a place for the number.
            (unsafe { ask(device, &mut value) } == 0).then_some(value)
        };
        let mut line = self.uuid(Line::new("gpu").field("gpu", number), device, uuid);
        let numbers = [("minor", c"nvmlDeviceGetMinorNumber"), ("mode", c"nvmlDeviceGetComputeMode")];
        for (name, function) in numbers {
            if let Some(value) = ask(function) {
                line = line.field(name, value);
            }
        }
        let (mut current, mut pending) = (0, 0);
        type Mig = unsafe extern "C" fn(Device, *mut c_uint, *mut c_uint) -> c_int;
        // SAFETY: a device, and places for two numbers.
        let has_mig = self
            .newer::<Mig>(c"nvmlDeviceGetMigMode")
            .is_some_and(|ask| unsafe { ask(device, &mut current, &mut pending) } == 0);
        if has_mig {
            line = line.field("mig", current);
        }
        let mut fabric = Fabric::default();
        // SAFETY: a device, and a structure of this layout.
        let has_fabric = self
            .newer::<unsafe extern "C" fn(Device, *mut Fabric) -> c_int>(c"nvmlDeviceGetGpuFabricInfo")
            .is_some_and(|ask| unsafe { ask(device, &mut fabric) } == 0);
        if has_fabric {
            line = line.field("fabric", fabric.state).field("status", fabric.status);
        }
        line.say();
        if !has_mig || current != 1 {
            return;
        }
        let Some(part) = self.newer::<PartOf>(c"nvmlDeviceGetMigDeviceHandleByIndex") else { return };
        for index in 0..ask(c"nvmlDeviceGetMaxMigDeviceCount").unwrap_or(0).min(MAX_GPUS) {
            let mut handle = core::ptr::null_mut();
            // SAFETY: a device, and a place for a handle.
            if unsafe { part(device, index, &mut handle) } == 0 {
                self.uuid(Line::new("part").field("gpu", number), handle, uuid).say();
            }
        }
    }
}

pub fn probe() {
    let Some(library) = Library::open(c"libnvidia-ml.so.1", c::RTLD_GLOBAL) else { return };
    // SAFETY: signatures of nvml.h.
    unsafe {
        let Some(error) = library.function(c"nvmlErrorString") else { return };
        let nvml = Nvml { library, error };
        type Nothing = unsafe extern "C" fn() -> c_int;
        let Some(init) = library.function::<Nothing>(c"nvmlInit_v2") else { return };
        let Some(version) = library.function::<Text>(c"nvmlSystemGetDriverVersion") else { return };
        let Some(count) =
            library.function::<unsafe extern "C" fn(*mut c_uint) -> c_int>(c"nvmlDeviceGetCount_v2")
        else {
            return;
        };
        let Some(get) = library
            .function::<unsafe extern "C" fn(c_uint, *mut Device) -> c_int>(c"nvmlDeviceGetHandleByIndex_v2")
        else {
            return;
        };
        let Some(uuid) = library.function::<TextOf>(c"nvmlDeviceGetUUID") else { return };
        Line::new("initialising").say();
        if !nvml.is_good("nvmlInit", init()) {
            return;
        }
        let mut text = [0; TEXT as usize];
        version(text.as_mut_ptr(), TEXT - 1);
        Line::new("driver").text("version", text.as_ptr()).say();
        let mut gpus = 0;
        if !nvml.is_good("nvmlDeviceGetCount", count(&mut gpus)) {
            return;
        }
        Line::new("gpus").field("count", gpus).say();
        for number in 0..gpus.min(MAX_GPUS) {
            let mut device = core::ptr::null_mut();
            if nvml.is_good("nvmlDeviceGetHandleByIndex", get(number, &mut device)) {
                nvml.gpu(number, device, uuid);
            }
        }
        if let Some(end) = nvml.newer::<Nothing>(c"nvmlShutdown") {
            end();
        }
    }
}
