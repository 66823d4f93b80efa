/* A libnvidia-ml that knows the GPUs of /proc/driver/nvidia, in that order. STUB_NVML says what is wrong with them. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GPUS = 8 };

struct device { char uuid[64]; int minor, is_part; };
struct fabric { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; };

static struct device gpus[MAX_GPUS], part = {"MIG-90000000-1111-2222-3333-444455556666", 0, 1};
static int count;

static int is(const char *what) {
    const char *wrong = getenv("STUB_NVML");
    return wrong && !strcmp(wrong, what);
}

static int of_gpu(const struct dirent *entry) { return entry->d_name[0] != '.'; }

int nvmlInit_v2(void) {
    if (is("crash"))
        *(volatile int *)0 = 1;
    if (is("mismatch"))
        return 18;
    struct dirent **names;
    int n = scandir("/proc/driver/nvidia/gpus", &names, of_gpu, alphasort);
    for (count = 0; count < n && count < MAX_GPUS; count++) {
        char path[512], line[256];
        snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%s/information", names[count]->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            return 999;
        while (fgets(line, sizeof line, file)) {
            sscanf(line, "GPU UUID: %60s", gpus[count].uuid);
            sscanf(line, "Device Minor: %d", &gpus[count].minor);
        }
        fclose(file);
    }
    return 0;
}

int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return error == 18 ? "Driver/library version mismatch" : "Unknown Error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return snprintf(version, length, "%s", is("other-driver") ? "535.1" : DRIVER), 0;
}

int nvmlDeviceGetCount_v2(unsigned *n) { return *n = count, 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, struct device **device) { return *device = &gpus[n], 0; }
int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length) {
    return snprintf(uuid, length, "%s", device->uuid), 0;
}
int nvmlDeviceGetMinorNumber(struct device *device, unsigned *minor) { return *minor = device->minor, 0; }

int nvmlDeviceGetComputeMode(struct device *device, unsigned *mode) {
    (void)device;
    return *mode = is("exclusive") ? 3 : is("prohibited") ? 2 : 0, 0;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *now, unsigned *next) {
    *now = *next = device == &gpus[0] && (is("mig") || is("mig-empty"));
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *n) { return (void)device, *n = 7, 0; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned n, struct device **handle) {
    (void)device;
    return *handle = &part, n == 0 && is("mig") ? 0 : 6;
}

int nvmlDeviceGetGpuFabricInfo(struct device *device, struct fabric *fabric) {
    (void)device;
    memset(fabric, 0, sizeof *fabric);
    fabric->state = is("fabric") ? 2 : 0;
    return 0;
}
