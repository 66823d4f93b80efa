/* Whose libraries each rank runs on: "rank R of N: NAME DEVICE INODE PATH" for every library of MPI, of C and of
 * fabrics that is mapped, from /proc/self/maps; proc(5) has the format. With a name as argument the program links no
 * MPI function of its own but opens that library at run time. */
#ifdef OPENS_MPI
#include <dlfcn.h>
#else
#include <mpi.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"libmpi.so", "libmpich.so", "libmpi_abi.so", "libc.so", "libc-2.", "ld-linux",
                                    "ld-2.",     "libmpi_cxx",  "libmpichcxx",   "libmpi_mpifh", "libmpichfort",
                                    "libucp.so", "libucs.so",   "libuct",        "libfabric.so", "libibverbs.so"};

static void report(int rank, int size) {
    char line[4096], seen[64][64];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        char device[32], inode[32], path[3800];
        if (sscanf(line, "%*s %*s %*s %31s %31s %3799[^\n]", device, inode, path) != 3) {
            continue;
        }
        const char *file = strrchr(path, '/');
        file = file ? file + 1 : path;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (strncmp(file, names[i], strlen(names[i])) != 0) {
                continue;
            }
            char key[64];
            snprintf(key, sizeof key, "%.30s %.30s", device, inode);
            int known = 0;
            for (int k = 0; k < count; k++) {
                known |= strcmp(seen[k], key) == 0;
            }
            if (!known && count < 64) {
                strcpy(seen[count++], key);
                printf("rank %d of %d: %s %s %s\n", rank, size, names[i], key, path);
            }
        }
    }
    fflush(stdout);
}

#ifdef OPENS_MPI
int main(int argc, char **argv) {
    void *mpi = dlopen(argc > 1 ? argv[1] : "libmpi.so.40", RTLD_NOW | RTLD_GLOBAL);
    if (!mpi) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    int (*init)(int *, char ***) = (int (*)(int *, char ***))dlsym(mpi, "MPI_Init");
    int (*finalize)(void) = (int (*)(void))dlsym(mpi, "MPI_Finalize");
    init(&argc, &argv);
    report(0, 0);
    finalize();
    return 0;
}
#else
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    report(rank, size);
    MPI_Finalize();
    return 0;
}
#endif
