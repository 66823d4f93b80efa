/* Cross-memory attach: every rank reads its neighbour's buffer on the same node with
 * process_vm_readv, as Open MPI and UCX do for large messages. Rank 0 prints "cma: N of N reads
 * correct". Ranks in separate user namespaces get EPERM here: such a rank says so and exits 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BYTES = 64 << 10 };
static unsigned char mine[BYTES], theirs[BYTES];

int main(int argc, char **argv) {
    int rank, size, node_rank, node_size, correct = 0, total = 0;
    MPI_Comm node;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &node_rank);
    MPI_Comm_size(node, &node_size);

    /* Where Yama restricts ptrace, siblings may read us only if we allow it; MPIs do the same. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    memset(mine, node_rank + 1, BYTES);

    long self[2] = {getpid(), (long)mine}, other[2];
    int next = (node_rank + 1) % node_size, previous = (node_rank + node_size - 1) % node_size;
    MPI_Sendrecv(self, 2, MPI_LONG, previous, 0, other, 2, MPI_LONG, next, 0, node,
                 MPI_STATUS_IGNORE);

    struct iovec local = {theirs, BYTES}, remote = {(void *)other[1], BYTES};
    ssize_t got = process_vm_readv((pid_t)other[0], &local, 1, &remote, 1, 0);
    if (got < 0) {
        printf("cma: rank %d cannot read pid %ld: %s\n", rank, other[0], strerror(errno));
    } else {
        correct = got == BYTES;
        for (int i = 0; i < BYTES; i++)
            correct &= theirs[i] == (unsigned char)(next + 1);
        if (!correct)
            printf("cma: rank %d read %zd bytes of pid %ld, contents WRONG\n", rank, got, other[0]);
    }
    fflush(stdout);

    /* Also holds every rank until its neighbour has read it. */
    MPI_Allreduce(&correct, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0)
        printf("cma: %d of %d reads correct\n", total, size);
    MPI_Comm_free(&node);
    MPI_Finalize();
    return !correct;
}
