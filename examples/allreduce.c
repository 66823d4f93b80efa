/* Sums 1 MiB of doubles and 1 MiB of ints over all ranks and checks every element on every rank.
 * Rank 0 prints "allreduce over N ranks: correct"; a wrong element makes its rank exit 1. The size
 * is past the eager limit of every MPI, so this moves data through shared memory or CMA. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { BYTES = 1 << 20, DOUBLES = BYTES / sizeof(double), INTS = BYTES / sizeof(int) };

int main(int argc, char **argv) {
    int rank, size, failed = 0, failures = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    double *doubles = malloc(BYTES), *double_sums = malloc(BYTES);
    int *ints = malloc(BYTES), *int_sums = malloc(BYTES);
    if (!doubles || !double_sums || !ints || !int_sums)
        MPI_Abort(MPI_COMM_WORLD, 1);

    /* Whole numbers below 2^53 add exactly in any order. */
    for (int i = 0; i < DOUBLES; i++)
        doubles[i] = i + rank;
    for (int i = 0; i < INTS; i++)
        ints[i] = i % 1000 - rank;
    MPI_Allreduce(doubles, double_sums, DOUBLES, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(ints, int_sums, INTS, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

    int ranks_sum = size * (size - 1) / 2;
    for (int i = 0; i < DOUBLES && !failed; i++)
        if (double_sums[i] != (double)i * size + ranks_sum) {
            printf("rank %d: double %d is %g\n", rank, i, double_sums[i]);
            failed = 1;
        }
    for (int i = 0; i < INTS && !failed; i++)
        if (int_sums[i] != i % 1000 * size - ranks_sum) {
            printf("rank %d: int %d is %d\n", rank, i, int_sums[i]);
            failed = 1;
        }

    MPI_Allreduce(&failed, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0 && failures == 0)
        printf("allreduce over %d ranks: correct\n", size);
    else if (rank == 0)
        printf("allreduce over %d ranks: WRONG on %d\n", size, failures);
    MPI_Finalize();
    return failed;
}
