/* Makes communicators in every way that MPI has for ranks that are there: a copy, two halves, a group of some
 * ranks' own making, and, where MPI has them, groups of a session: all ranks, those of one node, each alone. Each is
 * proved by an allreduce. Rank 0 prints "communicators of N ranks: dup split group session correct"; without
 * sessions it prints "communicators of N ranks: dup split group correct, this MPI has no session". Who finds something
 * wrong says "communicators: rank R of N: WHAT" and aborts all with 1.
 *
 *   communicators ends   only tries, with sessions, to make one of the first and the last rank, and rank 0 prints
 *                        "communicators of N ranks: ends made", or "refused" for the last word */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

/* Open MPI 5 has them and calls itself MPI 3.1. */
#if MPI_VERSION >= 4 || (defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5)
#define SESSIONS 1
#else
#define SESSIONS 0
#endif

static int rank, size;

#define FAIL_IF(wrong, ...)                                                                       \
    (void)((wrong) && (printf("communicators: rank %d of %d: ", rank, size), printf(__VA_ARGS__), \
                       fflush(stdout), MPI_Abort(MPI_COMM_WORLD, 1)))

/* Counts and adds up, by their ranks in the world, the members of a communicator, and frees it. */
static void members(MPI_Comm communicator, const char *name, int count, long expected) {
    long mine = rank, sum = -1;
    int found;

    MPI_Comm_size(communicator, &found);
    FAIL_IF(found != count, "%s: %d ranks, expected %d\n", name, found, count);
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, communicator);
    FAIL_IF(sum != expected, "%s: the sum is %ld, expected %ld\n", name, sum, expected);
    MPI_Comm_free(&communicator);
}

/* The sum of all ranks whose numbers are even, or odd. */
static long sum_of(int odd) {
    long sum = 0;
    for (int r = odd; r < size; r += 2)
        sum += r;
    return sum;
}

static int count_of(int odd) { return odd ? size / 2 : (size + 1) / 2; }

static void dup(void) {
    MPI_Comm copy;
    MPI_Comm_dup(MPI_COMM_WORLD, &copy);
    members(copy, "dup", size, sum_of(0) + sum_of(1));
}

static void split(void) {
    MPI_Comm half;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    members(half, "split", count_of(rank % 2), sum_of(rank % 2));
}

/* Only its members call for it. */
static void group(void) {
    int even[1][3] = {{0, (size - 1) / 2 * 2, 2}};
    MPI_Group all, some;
    MPI_Comm made;

    if (rank % 2)
        return;
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    MPI_Group_range_incl(all, 1, even, &some);
    MPI_Comm_create_group(MPI_COMM_WORLD, some, 7, &made);
    members(made, "group", count_of(0), sum_of(0));
    MPI_Group_free(&some);
    MPI_Group_free(&all);
}

#if SESSIONS
static MPI_Session session;

static MPI_Group of_session(const char *set) {
    MPI_Group found;
    FAIL_IF(MPI_Group_from_session_pset(session, set, &found) != MPI_SUCCESS, "no %s\n", set);
    return found;
}

static MPI_Comm from(MPI_Group ranks, const char *name) {
    MPI_Comm made;
    FAIL_IF(MPI_Comm_create_from_group(ranks, name, MPI_INFO_NULL, MPI_ERRORS_RETURN, &made) != MPI_SUCCESS,
            "%s: not made\n", name);
    return made;
}

static void sessions(void) {
    MPI_Group all, self, here;
    MPI_Comm node;
    int local, *ranks;
    long sum = 0;
    char name[64];

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &local);
    ranks = malloc(local * sizeof *ranks);
    FAIL_IF(!ranks, "no memory\n");
    MPI_Allgather(&rank, 1, MPI_INT, ranks, 1, MPI_INT, node);
    MPI_Comm_free(&node);
    for (int i = 0; i < local; i++)
        sum += ranks[i];

    MPI_Session_init(MPI_INFO_NULL, MPI_ERRORS_RETURN, &session);
    all = of_session("mpi://WORLD");
    self = of_session("mpi://SELF");
    MPI_Group_incl(all, local, ranks, &here);
    /* Twice: a name may be used again when its group is made. */
    for (int i = 0; i < 2; i++) {
        members(from(all, "session: all"), "session: all", size, sum_of(0) + sum_of(1));
        snprintf(name, sizeof name, "session: the node of %d", ranks[0]);
        members(from(here, name), name, local, sum);
        snprintf(name, sizeof name, "session: %d alone", rank);
        members(from(self, name), name, 1, rank);
    }
    MPI_Group_free(&here);
    MPI_Group_free(&self);
    MPI_Group_free(&all);
    MPI_Session_finalize(&session);
    free(ranks);
}

/* Whether it can be made of ranks that are neither all nor, with two nodes, on one. */
static const char *ends(void) {
    int both[1][3] = {{0, size - 1, size - 1}}, code = MPI_SUCCESS;
    MPI_Group all, two;
    MPI_Comm made;

    if (rank != 0 && rank != size - 1)
        return "";
    MPI_Session_init(MPI_INFO_NULL, MPI_ERRORS_RETURN, &session);
    all = of_session("mpi://WORLD");
    MPI_Group_range_incl(all, 1, both, &two);
    code = MPI_Comm_create_from_group(two, "ends", MPI_INFO_NULL, MPI_ERRORS_RETURN, &made);
    if (code == MPI_SUCCESS)
        members(made, "ends", 2, size - 1);
    MPI_Group_free(&two);
    MPI_Group_free(&all);
    MPI_Session_finalize(&session);
    return code == MPI_SUCCESS ? "ends made" : "ends refused";
}
#endif

int main(int argc, char **argv) {
    const char *made = "dup split group correct, this MPI has no session";

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
#if SESSIONS
    if (argc > 1) {
        made = ends();
    } else {
        sessions();
        made = "dup split group session correct";
    }
#endif
    if (argc == 1) {
        dup();
        split();
        group();
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        printf("communicators of %d ranks: %s\n", size, made);
    MPI_Finalize();
}
