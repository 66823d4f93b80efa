/* Needs nothing but libc: prints what an image without shell and tools could not be asked otherwise,
 * one "KEY VALUE" per line: pid, ids, working directory, arguments, and the environment whose names
 * begin with what launchers set. Built twice, as hello_libc and, linked statically, hello_static. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
    static const char *const prefixes[] = {"OMPI_", "PMIX_", "PMI_", "MPI_", "SLURM_", "HPC_LAUNCH_"};
    char cwd[4096];

    printf("pid %d\n", (int)getpid());
    printf("uid %d\ngid %d\n", (int)getuid(), (int)getgid());
    printf("cwd %s\n", getcwd(cwd, sizeof cwd) ? cwd : "?");
    for (int i = 1; i < argc; i++)
        printf("argument %s\n", argv[i]);
    for (char **entry = environ; *entry; entry++)
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            if (strncmp(*entry, prefixes[i], strlen(prefixes[i])) == 0)
                printf("env %s\n", *entry);
    return 0;
}
