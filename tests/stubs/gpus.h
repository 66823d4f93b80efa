/* The GPUs of /proc/driver/nvidia, in that order. */
#include <dirent.h>
#include <stdio.h>

enum { MAX_GPUS = 8 };

struct gpu { char uuid[64], model[64]; int minor; };

static int of_gpu(const struct dirent *entry) { return entry->d_name[0] != '.'; }

/* How many there are; -1: there is no driver, -2: one cannot be read. */
static int read_gpus(struct gpu *gpus) {
    struct dirent **names;
    int n = scandir("/proc/driver/nvidia/gpus", &names, of_gpu, alphasort), count;
    for (count = 0; count < n && count < MAX_GPUS; count++) {
        char path[512], line[256];
        snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%s/information", names[count]->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            return -2;
        while (fgets(line, sizeof line, file)) {
            sscanf(line, "GPU UUID: %60s", gpus[count].uuid);
            sscanf(line, "Model: %60[^\n]", gpus[count].model);
            sscanf(line, "Device Minor: %d", &gpus[count].minor);
        }
        fclose(file);
    }
    return n < 0 ? -1 : count;
}
