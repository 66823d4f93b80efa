/* A libcuda without any GPU: its memory is the process's own, its kernel is the one that hpc-launch's probe brings.
 * It knows the GPUs of /proc/driver/nvidia, in that order. STUB_CUDA says what is wrong with it. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "gpus.h"

enum { MEMORIES = 16 };

static struct gpu gpus[MAX_GPUS];
static int count;
/* Memory of other processes: where it is there. Their addresses here are small numbers. */
static struct { int pid; uint64_t address; } others[MEMORIES];
static int imported;

static const char *wrong(void) {
    const char *what = getenv("STUB_CUDA");
    return what ? what : "";
}

static int is(const char *what) { return !strcmp(wrong(), what); }

int cuInit(unsigned flags) {
    (void)flags;
    if (is("crash"))
        *(volatile int *)0 = 1;
    while (is("hang"))
        sleep(1);
    if (is("mismatch"))
        return 803;
    if (is("no-device"))
        return 100;
    count = read_gpus(gpus);
    if (is("other-gpu"))
        gpus[0].uuid[5] ^= 1, gpus[1].uuid[5] ^= 1;
    return count == -2 ? 999 : count < 0 ? 100 : 0;
}

int cuDriverGetVersion(int *version) { return *version = 12040, 0; }
int cuDeviceGetCount(int *n) { return *n = is("one-gpu") ? 1 : count, 0; }
int cuDeviceGet(int *device, int n) { return *device = n, 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "%s", gpus[device].model), 0; }

int cuDeviceGetUuid(unsigned char *uuid, int device) {
    const char *text = gpus[device].uuid + 4;
    for (int i = 0; i < 16; i++, text += 2) {
        if (*text == '-')
            text++;
        sscanf(text, "%2hhx", &uuid[i]);
    }
    return 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    /* Compute capability 9.0; GPUDirect RDMA and dma-buf are there. */
    return *value = which == 75 ? 9 : which == 116 || which == 124, 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &gpus[device].uuid, 0; }
int cuCtxSetCurrent(void *context) { return !context; }
int cuMemAlloc_v2(uint64_t *address, size_t length) { return *address = (uint64_t)malloc(length), 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t length) { return memcpy((void *)to, from, length), 0; }

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t length) {
    if (from < MEMORIES) {
        struct iovec here = {to, length}, there = {(void *)others[from].address, length};
        return process_vm_readv(others[from].pid, &here, 1, &there, 1, 0) == (ssize_t)length ? 0 : 999;
    }
    memcpy(to, (void *)from, length);
    if (is("bad-copy"))
        ((char *)to)[length / 2] ^= 1;
    return 0;
}

int cuModuleLoadData(void **module, const char *ptx) {
    if (is("old-ptx"))
        return 222;
    return *module = (void *)ptx, strstr(ptx, ".entry add_one") ? 0 : 200;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    return *function = module, strcmp(name, "add_one") ? 500 : 0;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    (void)function, (void)x, (void)y, (void)z, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;
    uint32_t *numbers = (uint32_t *)*(uint64_t *)arguments[0];
    for (unsigned i = 0; i < threads; i++)
        numbers[i]++;
    return 0;
}

int cuCtxSynchronize(void) { return 0; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { return *can = device != peer, 0; }

int cuIpcGetMemHandle(char handle[64], uint64_t address) {
    int pid = getpid();
    memcpy(handle, &pid, sizeof pid);
    memcpy(handle + 8, &address, sizeof address);
    return 0;
}

struct handle { char bytes[64]; };

int cuIpcOpenMemHandle_v2(uint64_t *address, struct handle handle, unsigned flags) {
    (void)flags;
    if (is("no-ipc"))
        return 201;
    imported = imported % (MEMORIES - 1) + 1;
    memcpy(&others[imported].pid, handle.bytes, sizeof(int));
    memcpy(&others[imported].address, handle.bytes + 8, sizeof(uint64_t));
    return *address = imported, 0;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
    case 100: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case 201: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case 222: *name = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"; break;
    case 803: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return 0;
}
