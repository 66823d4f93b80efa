/* Everything a wire-up must give, each rank checking for itself: a ring of messages, an allreduce of
 * 1 MiB, the ranks of one node, communicators made of others, and a put into a neighbour's memory.
 * Rank 0 prints "wireup of N ranks: ring allreduce shared split put correct". Who finds something
 * wrong says "wireup: rank R of N: WHAT" and aborts all with 1.
 *
 *   wireup [MILLISECONDS]   sleeps so long before MPI_Finalize: an MPICH over UCX's TCP may hang in one
 *                           that follows the first messages of any pair of ranks closely
 *
 * With WIREUP_LOCAL=L in the environment every rank must find L ranks on its node, itself included. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { DOUBLES = (1 << 20) / sizeof(double), PUT = 1000 };
static double numbers[DOUBLES], sums[DOUBLES];
static long window[PUT], origin[PUT];
static int rank, size, next, previous;

#define FAIL_IF(wrong, ...)                                                                \
    (void)((wrong) && (printf("wireup: rank %d of %d: ", rank, size), printf(__VA_ARGS__), \
                       fflush(stdout), MPI_Abort(MPI_COMM_WORLD, 1)))

/* What the ranks up to this one add up to. */
static long sum_up_to(long last) { return last * (last + 1) / 2; }

/* A sum goes round once; each rank knows what must have come together before it. */
static void ring(void) {
    long sum = -1, start = 0, expected = sum_up_to(previous);
    MPI_Request request;

    /* Posted first: a single rank sends to itself. */
    MPI_Irecv(&sum, 1, MPI_LONG, previous, 0, MPI_COMM_WORLD, &request);
    if (rank == 0)
        MPI_Send(&start, 1, MPI_LONG, next, 0, MPI_COMM_WORLD);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    FAIL_IF(sum != expected, "ring: got %ld from rank %d, expected %ld\n", sum, previous, expected);
    sum += rank;
    if (rank != 0)
        MPI_Send(&sum, 1, MPI_LONG, next, 0, MPI_COMM_WORLD);
}

static void allreduce(void) {
    /* Whole numbers below 2^53 add exactly in any order. */
    for (int i = 0; i < DOUBLES; i++)
        numbers[i] = i + rank;
    MPI_Allreduce(numbers, sums, DOUBLES, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < DOUBLES; i++) {
        double expected = (double)i * size + sum_up_to(size - 1);
        FAIL_IF(sums[i] != expected, "allreduce: element %d is %g, expected %g\n", i, sums[i], expected);
    }
}

static void shared(void) {
    const char *expected = getenv("WIREUP_LOCAL");
    int local;
    MPI_Comm node;

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &local);
    FAIL_IF(expected && local != atoi(expected), "shared: %d ranks on this node, expected %s\n",
            local, expected);
    MPI_Comm_free(&node);
}

/* Counts and adds up, by their ranks in the world, the members of a communicator, and frees it. */
static void members(MPI_Comm communicator, const char *name, int count, long expected) {
    long mine = rank, sum = -1;
    int found;

    MPI_Comm_size(communicator, &found);
    FAIL_IF(found != count, "split: %d ranks in %s, expected %d\n", found, name, count);
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, communicator);
    FAIL_IF(sum != expected, "split: sum over %s is %ld, expected %ld\n", name, sum, expected);
    MPI_Comm_free(&communicator);
}

static void split(void) {
    long even = (size + 1) / 2, odd = size / 2;
    MPI_Comm all, half;

    MPI_Comm_dup(MPI_COMM_WORLD, &all);
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    members(all, "the duplicate", size, sum_up_to(size - 1));
    if (rank % 2 == 0)
        members(half, "the even half", even, even * (even - 1));
    else
        members(half, "the odd half", odd, odd * odd);
}

static void put(void) {
    MPI_Win exposed;

    for (int i = 0; i < PUT; i++) {
        window[i] = -1;
        origin[i] = (long)rank * PUT + i;
    }
    MPI_Win_create(window, sizeof window, sizeof *window, MPI_INFO_NULL, MPI_COMM_WORLD, &exposed);
    MPI_Win_fence(0, exposed);
    MPI_Put(origin, PUT, MPI_LONG, next, 0, PUT, MPI_LONG, exposed);
    MPI_Win_fence(0, exposed);
    for (int i = 0; i < PUT; i++) {
        long expected = (long)previous * PUT + i;
        FAIL_IF(window[i] != expected, "put: element %d is %ld, expected %ld\n", i, window[i], expected);
    }
    MPI_Win_free(&exposed);
}

/* Everybody has spoken with everybody before the end. */
static void meet(void) {
    int *to = malloc(size * sizeof *to), *from = malloc(size * sizeof *from);

    for (int i = 0; i < size; i++)
        to[i] = rank;
    MPI_Alltoall(to, 1, MPI_INT, from, 1, MPI_INT, MPI_COMM_WORLD);
    for (int i = 0; i < size; i++)
        FAIL_IF(from[i] != i, "alltoall: got %d from rank %d\n", from[i], i);
    free(to);
    free(from);
}

int main(int argc, char **argv) {
    /* Debian's parameters for Open MPI 4 exclude pt2pt too, the only one with which it has windows over
     * TCP or for a single rank. */
    setenv("OMPI_MCA_osc", "^ucx", 0);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    next = (rank + 1) % size;
    previous = (rank + size - 1) % size;

    ring();
    allreduce();
    shared();
    split();
    put();
    /* Passed only if nobody has found anything wrong. */
    MPI_Barrier(MPI_COMM_WORLD);
    meet();
    if (rank == 0)
        printf("wireup of %d ranks: ring allreduce shared split put correct\n", size);
    fflush(stdout);
    usleep(argc > 1 ? 1000 * atoi(argv[1]) : 0);
    MPI_Finalize();
    return 0;
}
