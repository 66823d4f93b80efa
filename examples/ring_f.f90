! ring.c in Fortran, through "use mpi": besides the ring, it needs the Fortran glue of the MPI
! library and the compiler's runtime, which an image and a host can hold in different versions.
program ring_f
  use mpi
  implicit none
  integer :: rank, size, next, previous, token, total, expected, request, error

  call MPI_Init(error)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, error)
  call MPI_Comm_size(MPI_COMM_WORLD, size, error)
  next = mod(rank + 1, size)
  previous = mod(rank + size - 1, size)

  if (rank == 0) then
    token = 0
    total = -1
    expected = size * (size - 1) / 2
    call MPI_Irecv(total, 1, MPI_INTEGER, previous, 0, MPI_COMM_WORLD, request, error)
    call MPI_Send(token, 1, MPI_INTEGER, next, 0, MPI_COMM_WORLD, error)
    call MPI_Wait(request, MPI_STATUS_IGNORE, error)
    if (total /= expected) then
      print '(a,i0,a,i0,a,i0)', 'ring of ', size, ' ranks: sum ', total, ' WRONG, expected ', expected
      call MPI_Abort(MPI_COMM_WORLD, 1, error)
    end if
    print '(a,i0,a,i0,a)', 'ring of ', size, ' ranks: sum ', total, ' correct'
  else
    call MPI_Recv(token, 1, MPI_INTEGER, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE, error)
    token = token + rank
    call MPI_Send(token, 1, MPI_INTEGER, next, 0, MPI_COMM_WORLD, error)
  end if
  call MPI_Finalize(error)
end program ring_f
