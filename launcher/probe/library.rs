//! Opens libraries, and finds functions in them.

use core::ffi::{CStr, c_int, c_void};

use crate::Arguments;
use crate::c;
use crate::say::Line;

/// A library that was opened.
#[derive(Clone, Copy)]
pub struct Library(*mut c_void);

impl Library {
    /// Opens it with every symbol bound, and says how that went.
    pub fn open(name: &CStr, more: c_int) -> Option<Library> {
        // Whoever reads this and nothing more knows in which library the process died.
        Line::new("opening").text("name", name.as_ptr()).say();
        // SAFETY: a string. What the library's initialisers do is what is to be found out.
        let handle = unsafe { c::dlopen(name.as_ptr(), c::RTLD_NOW | more) };
        let line = Line::new("library").text("name", name.as_ptr());
        if handle.is_null() {
            // SAFETY: a string of the loader's, or none.
            line.text("error", unsafe { c::dlerror() }).say();
            return None;
        }
        let mut map: *const c::LinkMap = core::ptr::null();
        // SAFETY: RTLD_DI_LINKMAP stores one pointer.
        unsafe { c::dlinfo(handle, c::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
        // SAFETY: an element of the loader's list, or none.
        let path = unsafe { map.as_ref() }.map_or(core::ptr::null(), |map| map.name);
        line.text("path", path).say();
        Some(Library(handle))
    }

    /// The address of a symbol.
    pub fn find(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: an open library, and a string.
        let found = unsafe { c::dlsym(self.0, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// The function of a name; a missing one is said.
    ///
    /// # Safety
    /// `F` must be a function pointer of the signature that the library documents.
    pub unsafe fn function<F: Copy>(&self, name: &CStr) -> Option<F> {
        let Some(found) = self.find(name) else {
            Line::new("missing").text("name", name.as_ptr()).say();
            return None;
        };
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: of the size of a pointer; by the caller it is one to such a function.
        Some(unsafe { core::mem::transmute_copy(&found) })
    }
}

/// Every object of the process, in the loader's order.
pub fn say_objects() {
    // SAFETY: no name: the program itself, whose handle has the list.
    let handle = unsafe { c::dlopen(core::ptr::null(), c::RTLD_NOW) };
    if handle.is_null() {
        return;
    }
    let mut map: *const c::LinkMap = core::ptr::null();
    // SAFETY: RTLD_DI_LINKMAP stores one pointer.
    unsafe { c::dlinfo(handle, c::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
    // SAFETY: elements of the loader's list, which nothing changes meanwhile.
    while let Some(object) = unsafe { map.as_ref() } {
        // SAFETY: each has a name.
        if !object.name.is_null() && unsafe { *object.name } != 0 {
            Line::new("object").text("path", object.name).say();
        }
        map = object.next;
    }
}

/// `load LIBRARY…`: parts of an MPI take symbols of its core, which therefore comes first.
pub fn load(names: Arguments) {
    for name in names.iter() {
        let _ = Library::open(name, c::RTLD_GLOBAL);
    }
    say_objects();
}
