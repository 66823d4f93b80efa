//! UCX: which transports it would use here, as it says itself.

use core::ffi::{c_char, c_int, c_void};

use crate::c;
use crate::library::{Library, say_objects};
use crate::say::Line;

/// Larger than `ucp_params_t` of any release.
const PARAMETERS: usize = 1024;

pub fn probe() {
    let Some(library) = Library::open(c"libucp.so.0", c::RTLD_GLOBAL) else { return };
    // SAFETY: signatures of ucp/api/ucp.h, and of stdio for the last.
    unsafe {
        let Some(version) =
            library.function::<unsafe extern "C" fn() -> *const c_char>(c"ucp_get_version_string")
        else {
            return;
        };
        Line::new("version").text("text", version()).say();
        type Init = unsafe extern "C" fn(u32, u32, *const u64, *const c_void, *mut *mut c_void) -> i8;
        type Numbers = unsafe extern "C" fn(*mut u32, *mut u32, *mut u32);
        let Some(init) = library.function::<Init>(c"ucp_init_version") else { return };
        let Some(numbers) = library.function::<Numbers>(c"ucp_get_version") else { return };
        let Some(print) =
            library.function::<unsafe extern "C" fn(*mut c_void, *mut c_void)>(c"ucp_context_print_info")
        else {
            return;
        };
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        numbers(&mut major, &mut minor, &mut patch);
        // A status is one byte (UCS_S_PACKED). field_mask = UCP_PARAM_FIELD_FEATURES, features = UCP_FEATURE_TAG | UCP_FEATURE_RMA; all else is not looked at.
        let mut parameters = [0u64; PARAMETERS / 8];
        parameters[0] = 1;
        parameters[1] = 1 | 2;
        let mut context = core::ptr::null_mut();
        Line::new("initialising").say();
        let status = init(major, minor, parameters.as_ptr(), core::ptr::null(), &mut context);
        Line::new("initialised").field("status", status).say();
        if status == 0
            && let Some(out) = library.find(c"stdout")
        {
            type Flush = unsafe extern "C" fn(*mut c_void) -> c_int;
            let stream: *mut c_void = *out.cast();
            print(context, stream);
            if let Some(flush) = library.function::<Flush>(c"fflush") {
                flush(stream);
            }
        }
    }
    say_objects();
}
