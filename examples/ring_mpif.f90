! ring.c in Fortran, through "mpif.h" as programs of the last century have it.
program ring_mpif
  implicit none
  include 'mpif.h'
  integer :: rank, size, next, previous, token, total, expected, error
  integer :: request

  call MPI_Init(error)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, error)
  call MPI_Comm_size(MPI_COMM_WORLD, size, error)
  next = mod(rank + 1, size)
  previous = mod(rank + size - 1, size)

  if (rank == 0) then
    call whose()
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

contains

  ! The MPI libraries that are mapped, as /proc/self/maps has them.
  subroutine whose()
    character(len=1024) :: line
    character(len=1024), dimension(8) :: seen
    integer :: unit, status, count, at, i
    logical :: known

    count = 0
    open (newunit=unit, file='/proc/self/maps', action='read')
    do
      read (unit, '(a)', iostat=status) line
      if (status /= 0) exit
      if (index(line, 'libmpi.so') == 0 .and. index(line, 'libmpich.so') == 0 &
          .and. index(line, 'libmpi_abi.so') == 0) cycle
      ! Behind addresses, permissions and offset.
      at = index(line, ' ')
      at = at + index(line(at + 1:), ' ')
      at = at + index(line(at + 1:), ' ')
      line = line(at + 1:)
      known = .false.
      do i = 1, count
        known = known .or. seen(i) == line
      end do
      if (.not. known .and. count < 8) then
        count = count + 1
        seen(count) = line
        print '(a,a)', 'maps: ', trim(line)
      end if
    end do
    close (unit)
  end subroutine whose
end program ring_mpif
