//! CUDA: from cuInit to a kernel that the driver compiles, on every GPU that it shows.
//!
//! Signatures: cuda.h; the `_v2` of a name is what its headers make of it since CUDA 3.2 or 4.0.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::c;
use crate::library::Library;
use crate::say::Line;

/// There and back.
const BYTES: usize = 1 << 20;
const MAX_GPUS: c_int = 64;
/// CU_DEVICE_ATTRIBUTE_…
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const GPU_DIRECT_RDMA: c_int = 116;
const DMA_BUF: c_int = 124;
/// Adds one to each of the first numbers. For the oldest processor that a driver of today knows.
const PTX: &CStr = c".version 6.0\n.target sm_50\n.address_size 64\n\
.visible .entry add_one(.param .u64 at)\n{\n.reg .b32 %r<3>;\n.reg .b64 %rd<5>;\n\
ld.param.u64 %rd1, [at];\ncvta.to.global.u64 %rd2, %rd1;\nmov.u32 %r1, %tid.x;\n\
mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd2, %rd3;\n\
ld.global.u32 %r2, [%rd4];\nadd.u32 %r2, %r2, 1;\nst.global.u32 [%rd4], %r2;\nret;\n}\n";
const THREADS: c_uint = 64;

type Pointer = *mut c_void;
/// An address in a GPU's memory.
pub type Address = u64;

/// `CUipcMemHandle`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Handle(pub [u8; 64]);

/// Functions of libcuda.
pub struct Cuda {
    name_of: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    init: unsafe extern "C" fn(c_uint) -> c_int,
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    count: unsafe extern "C" fn(*mut c_int) -> c_int,
    get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    uuid: unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    context: unsafe extern "C" fn(*mut Pointer, c_int) -> c_int,
    set: unsafe extern "C" fn(Pointer) -> c_int,
    allocate: unsafe extern "C" fn(*mut Address, usize) -> c_int,
    there: unsafe extern "C" fn(Address, *const c_void, usize) -> c_int,
    back: unsafe extern "C" fn(*mut c_void, Address, usize) -> c_int,
    load: unsafe extern "C" fn(*mut Pointer, *const c_char) -> c_int,
    function: unsafe extern "C" fn(*mut Pointer, Pointer, *const c_char) -> c_int,
    launch: unsafe extern "C" fn(
        Pointer,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Pointer,
        *mut Pointer,
        *mut Pointer,
    ) -> c_int,
    synchronise: unsafe extern "C" fn() -> c_int,
    peer: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    export: unsafe extern "C" fn(*mut Handle, Address) -> c_int,
    import: unsafe extern "C" fn(*mut Address, Handle, c_uint) -> c_int,
}

/// The image's or the host's, as the loader finds it.
pub fn open() -> Option<Cuda> {
    let library = Library::open(c"libcuda.so.1", c::RTLD_GLOBAL)?;
    // SAFETY: signatures of cuda.h.
    unsafe {
        Some(Cuda {
            name_of: library.function(c"cuGetErrorName")?,
            init: library.function(c"cuInit")?,
            version: library.function(c"cuDriverGetVersion")?,
            count: library.function(c"cuDeviceGetCount")?,
            get: library.function(c"cuDeviceGet")?,
            device_name: library.function(c"cuDeviceGetName")?,
            // The GPU's, also where it is used in parts (MIG), unlike `_v2`.
            uuid: library.function(c"cuDeviceGetUuid")?,
            attribute: library.function(c"cuDeviceGetAttribute")?,
            context: library.function(c"cuDevicePrimaryCtxRetain")?,
            set: library.function(c"cuCtxSetCurrent")?,
            allocate: library.function(c"cuMemAlloc_v2")?,
            there: library.function(c"cuMemcpyHtoD_v2")?,
            back: library.function(c"cuMemcpyDtoH_v2")?,
            load: library.function(c"cuModuleLoadData")?,
            function: library.function(c"cuModuleGetFunction")?,
            launch: library.function(c"cuLaunchKernel")?,
            synchronise: library.function(c"cuCtxSynchronize")?,
            peer: library.function(c"cuDeviceCanAccessPeer")?,
            export: library.function(c"cuIpcGetMemHandle")?,
            import: library.function(c"cuIpcOpenMemHandle_v2")?,
        })
    }
}

impl Cuda {
    /// Whether a call was good; if not, that is said.
    fn is_good(&self, device: c_int, what: &str, result: c_int) -> bool {
        if result != 0 {
            let mut name = core::ptr::null();
            // SAFETY: it stores a pointer to a constant.
            unsafe { (self.name_of)(result, &mut name) };
            Line::new("failed")
                .field("gpu", device)
                .field("call", what)
                .field("result", result)
                .text("error", name)
                .say();
        }
        result == 0
    }

    /// Number of GPUs; none: that failed, and is said.
    pub fn begin(&self) -> Option<c_int> {
        let (mut version, mut count) = (0, 0);
        // SAFETY: as documented.
        unsafe {
            (self.version)(&mut version);
            Line::new("version").field("number", version).say();
            Line::new("initialising").say();
            let good = self.is_good(-1, "cuInit", (self.init)(0))
                && self.is_good(-1, "cuDeviceGetCount", (self.count)(&mut count));
            good.then_some(count)
        }
    }

    /// A GPU's memory, filled; its context is this thread's.
    pub fn memory(&self, device: c_int, bytes: &[u8]) -> Option<Address> {
        let mut context = core::ptr::null_mut();
        let mut address = 0;
        // SAFETY: as documented.
        unsafe {
            (self.is_good(device, "cuDevicePrimaryCtxRetain", (self.context)(&mut context, device))
                && self.is_good(device, "cuCtxSetCurrent", (self.set)(context))
                && self.is_good(device, "cuMemAlloc", (self.allocate)(&mut address, bytes.len()))
                && self.is_good(
                    device,
                    "cuMemcpyHtoD",
                    (self.there)(address, bytes.as_ptr().cast(), bytes.len()),
                ))
            .then_some(address)
        }
    }

    /// What is in a GPU's memory.
    pub fn read(&self, device: c_int, from: Address, to: &mut [u8]) -> bool {
        // SAFETY: as documented.
        let result = unsafe { (self.back)(to.as_mut_ptr().cast(), from, to.len()) };
        self.is_good(device, "cuMemcpyDtoH", result)
    }

    /// A handle by which another process opens this memory.
    pub fn export(&self, device: c_int, address: Address) -> Option<Handle> {
        let mut handle = Handle([0; 64]);
        // SAFETY: as documented.
        let result = unsafe { (self.export)(&mut handle, address) };
        self.is_good(device, "cuIpcGetMemHandle", result).then_some(handle)
    }

    /// Another process's memory.
    pub fn import(&self, device: c_int, handle: Handle) -> Option<Address> {
        let mut address = 0;
        // SAFETY: as documented; 1 is CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS.
        let result = unsafe { (self.import)(&mut address, handle, 1) };
        self.is_good(device, "cuIpcOpenMemHandle", result).then_some(address)
    }

    fn gpu(&self, number: c_int, count: c_int) {
        let mut device = 0;
        let mut name = [0u8; 96];
        let mut uuid = [0u8; 16];
        // SAFETY: as documented; the name's last byte stays zero.
        unsafe {
            if !self.is_good(number, "cuDeviceGet", (self.get)(&mut device, number)) {
                return;
            }
            (self.device_name)(name.as_mut_ptr().cast(), 95, device);
            (self.uuid)(&mut uuid, device);
        }
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as documented.
            let status = unsafe { (self.attribute)(&mut value, which, device) };
            if status == 0 { value } else { 0 }
        };
        Line::new("gpu")
            .field("gpu", number)
            .text("model", name.as_ptr().cast())
            .field("uuid", Uuid(uuid))
            .field("major", attribute(CAPABILITY_MAJOR))
            .field("minor", attribute(CAPABILITY_MINOR))
            .field("direct", attribute(GPU_DIRECT_RDMA))
            .field("dmabuf", attribute(DMA_BUF))
            .say();
        let (Some(bytes), Some(other)) = (c::zeroed(BYTES), c::zeroed(BYTES)) else { return };
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (n * 5 + n / 253) as u8;
        }
        let Some(memory) = self.memory(device, bytes) else { return };
        if !self.read(device, memory, other) {
            return;
        }
        Line::new("copied")
            .field("gpu", number)
            .field("bytes", BYTES)
            .field("equal", u8::from(*bytes == *other))
            .say();
        if let Some(is_right) = self.kernel(device, memory, bytes, other) {
            Line::new("kernel").field("gpu", number).field("equal", u8::from(is_right)).say();
        }
        for peer in (0..count).filter(|peer| *peer != number) {
            let mut can = 0;
            // SAFETY: as documented.
            if unsafe { (self.peer)(&mut can, device, peer) } == 0 {
                Line::new("peer").field("gpu", number).field("other", peer).field("can", can).say();
            }
        }
    }

    /// Whether a kernel, compiled here from PTX, added one to each number.
    fn kernel(&self, device: c_int, memory: Address, before: &[u8], after: &mut [u8]) -> Option<bool> {
        let (mut module, mut function) = (core::ptr::null_mut(), core::ptr::null_mut());
        let mut argument = memory;
        let mut arguments = [(&raw mut argument).cast::<c_void>()];
        let null = core::ptr::null_mut();
        // SAFETY: as documented; the kernel takes one pointer.
        unsafe {
            let good = self.is_good(device, "cuModuleLoadData", (self.load)(&mut module, PTX.as_ptr()))
                && self.is_good(
                    device,
                    "cuModuleGetFunction",
                    (self.function)(&mut function, module, c"add_one".as_ptr()),
                )
                && self.is_good(
                    device,
                    "cuLaunchKernel",
                    (self.launch)(
                        function,
                        1,
                        1,
                        1,
                        THREADS,
                        1,
                        1,
                        0,
                        null,
                        arguments.as_mut_ptr(),
                        core::ptr::null_mut(),
                    ),
                )
                && self.is_good(device, "cuCtxSynchronize", (self.synchronise)());
            if !good {
                return None;
            }
        }
        let length = THREADS as usize * 4;
        if !self.read(device, memory, &mut after[..length]) {
            return None;
        }
        let number =
            |bytes: &[u8], n: usize| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        Some((0..length).step_by(4).all(|n| number(after, n) == number(before, n).wrapping_add(1)))
    }
}

/// As NVIDIA writes it.
struct Uuid([u8; 16]);

impl core::fmt::Display for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("GPU-")?;
        for (n, byte) in self.0.iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

pub fn probe() {
    let Some(cuda) = open() else { return };
    let Some(count) = cuda.begin() else { return };
    Line::new("gpus").field("count", count).say();
    for number in 0..count.min(MAX_GPUS) {
        cuda.gpu(number, count);
    }
}
