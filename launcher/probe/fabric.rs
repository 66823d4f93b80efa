//! libfabric: which providers it has here.

use core::ffi::{c_char, c_int, c_void};

use crate::c;
use crate::library::{Library, say_objects};
use crate::say::Line;

/// More than any node has endpoints.
const MAX_INFOS: usize = 512;

/// `struct fi_info` (rdma/fabric.h), whose start is an ABI since 1.0.
#[repr(C)]
struct Info {
    next: *const Info,
    capabilities: u64,
    mode: u64,
    address_format: u32,
    source_length: usize,
    destination_length: usize,
    source: *const c_void,
    destination: *const c_void,
    handle: *const c_void,
    transmit: *const c_void,
    receive: *const c_void,
    endpoint: *const u32,
    domain: *const Named,
    fabric: *const Named,
}

/// `struct fi_fabric_attr` and the start of `struct fi_domain_attr`.
#[repr(C)]
struct Named {
    object: *const c_void,
    name: *const c_char,
    provider: *const c_char,
}

const _: () = assert!(core::mem::offset_of!(Info, fabric) == 104);

pub fn probe() {
    let Some(library) = Library::open(c"libfabric.so.1", c::RTLD_GLOBAL) else { return };
    type GetInfo = unsafe extern "C" fn(
        u32,
        *const c_char,
        *const c_char,
        u64,
        *const c_void,
        *mut *const Info,
    ) -> c_int;
    // SAFETY: signatures and layouts of rdma/fabric.h.
    unsafe {
        let Some(version) = library.function::<unsafe extern "C" fn() -> u32>(c"fi_version") else { return };
        let Some(get) = library.function::<GetInfo>(c"fi_getinfo") else { return };
        let it = version();
        Line::new("version").field("major", it >> 16).field("minor", it & 0xffff).say();
        let mut info: *const Info = core::ptr::null();
        let (none, nothing) = (core::ptr::null(), core::ptr::null());
        // FI_VERSION(1, 5): the caller speaks this one.
        let status = get(1 << 16 | 5, none, none, 0, nothing, &mut info);
        Line::new("information").field("status", status).say();
        for _ in 0..MAX_INFOS {
            let Some(one) = info.as_ref() else { break };
            if let Some(fabric) = one.fabric.as_ref() {
                let mut line =
                    Line::new("provider").text("name", fabric.provider).text("fabric", fabric.name);
                if let Some(domain) = one.domain.as_ref() {
                    line = line.text("domain", domain.name);
                }
                if let Some(kind) = one.endpoint.as_ref() {
                    line = line.field("endpoint", kind);
                }
                line.say();
            }
            info = one.next;
        }
    }
    say_objects();
}
