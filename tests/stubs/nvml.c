/* A libnvidia-ml that knows the GPUs of /proc/driver/nvidia, in that order. STUB_NVML says what is wrong with them. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "gpus.h"

struct fabric { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; };

static struct gpu gpus[MAX_GPUS], part = {"MIG-90000000-1111-2222-3333-444455556666", "", 0};
static int count;

static int is(const char *what) {
    const char *wrong = getenv("STUB_NVML");
    return wrong && !strcmp(wrong, what);
}

int nvmlInit_v2(void) {
    if (is("crash"))
        *(volatile int *)0 = 1;
    if (is("mismatch"))
        return 18;
    count = read_gpus(gpus);
    return count < 0 ? 999 : 0;
}

int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return error == 18 ? "Driver/library version mismatch" : "Unknown Error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return snprintf(version, length, "%s", is("other-driver") ? "535.1" : DRIVER), 0;
}

int nvmlDeviceGetCount_v2(unsigned *n) { return *n = count, 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, struct gpu **device) { return *device = &gpus[n], 0; }
int nvmlDeviceGetUUID(struct gpu *device, char *uuid, unsigned length) {
    return snprintf(uuid, length, "%s", device->uuid), 0;
}
int nvmlDeviceGetMinorNumber(struct gpu *device, unsigned *minor) { return *minor = device->minor, 0; }

int nvmlDeviceGetComputeMode(struct gpu *device, unsigned *mode) {
    (void)device;
    return *mode = is("exclusive") ? 3 : is("prohibited") ? 2 : 0, 0;
}

int nvmlDeviceGetMigMode(struct gpu *device, unsigned *now, unsigned *next) {
    *now = *next = device == &gpus[0] && (is("mig") || is("mig-empty"));
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *device, unsigned *n) { return (void)device, *n = 7, 0; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *device, unsigned n, struct gpu **handle) {
    (void)device;
    return *handle = &part, n == 0 && is("mig") ? 0 : 6;
}

int nvmlDeviceGetGpuFabricInfo(struct gpu *device, struct fabric *fabric) {
    (void)device;
    memset(fabric, 0, sizeof *fabric);
    fabric->state = is("fabric") ? 2 : 0;
    return 0;
}
