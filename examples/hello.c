/* Says who it is: "rank R of N on HOST: VERSION", one line per rank, where VERSION is the first line
 * of what the MPI library calls itself. Shows at once whether N ranks found each other (N singletons
 * would all say "rank 0 of 1") and whose MPI they run on, the image's or the host's. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    int rank, size, length;
    char host[MPI_MAX_PROCESSOR_NAME], version[MPI_MAX_LIBRARY_VERSION_STRING];

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(host, &length);
    MPI_Get_library_version(version, &length);
    version[strcspn(version, "\n")] = '\0';

    printf("rank %d of %d on %s: %s\n", rank, size, host, version);
    MPI_Finalize();
    return 0;
}
