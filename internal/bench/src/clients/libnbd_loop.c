/* The tightest loop that libnbd's asynchronous interface allows for: a fixed number of requests in flight on one
 * connection, buffers that are used again, completions told by callbacks that retire their commands. Reads don't
 * clear their buffers first. It is built and run by `nbd-bench client`, which our clients are held against.
 *
 *     libnbd_loop SOCKET EXPORT read|write BLOCK DEPTH SECONDS REQUESTS SEED
 *
 * Where SECONDS or REQUESTS is 0 there is no such end. It prints requests, seconds, and seconds of CPU as JSON.
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

static struct nbd_handle *nbd;
static size_t *idle;
static size_t idle_count;
static uint64_t answered;

static void
fail (const char *what)
{
  fprintf (stderr, "libnbd: %s: %s\n", what, nbd_get_error ());
  exit (EXIT_FAILURE);
}

static double
seconds_of (clockid_t clock)
{
  struct timespec now;

  clock_gettime (clock, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

/* The generator that all clients have their offsets from (SplitMix64). */
static uint64_t
next_number (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static int
done (void *slot, int *error)
{
  if (*error) {
    errno = *error;
    perror ("libnbd: a request failed");
    exit (EXIT_FAILURE);
  }
  idle[idle_count++] = (size_t)(uintptr_t) slot;
  answered++;
  return 1; /* Retires the command. */
}

int
main (int argc, char *argv[])
{
  if (argc != 9) {
    fprintf (stderr, "libnbd: wrong number of arguments\n");
    return EXIT_FAILURE;
  }
  const int writes = strcmp (argv[3], "write") == 0;
  const size_t block = strtoull (argv[4], NULL, 10);
  const size_t depth = strtoull (argv[5], NULL, 10);
  const double limit = strtod (argv[6], NULL);
  const uint64_t most = strtoull (argv[7], NULL, 10);
  uint64_t random = strtoull (argv[8], NULL, 10);

  nbd = nbd_create ();
  if (nbd == NULL)
    fail ("create");
#ifdef LIBNBD_HAVE_NBD_SET_PREAD_INITIALIZE
  nbd_set_pread_initialize (nbd, false);
#endif
  if (nbd_set_export_name (nbd, argv[2]) == -1 || nbd_connect_unix (nbd, argv[1]) == -1)
    fail ("connect");
  const int64_t size = nbd_get_size (nbd);
  if (size < (int64_t) block || block == 0 || depth == 0) {
    fprintf (stderr, "libnbd: block or depth does not fit\n");
    return EXIT_FAILURE;
  }
  const uint64_t blocks = size / block;

  char **buffers = calloc (depth, sizeof *buffers);
  idle = calloc (depth, sizeof *idle);
  if (buffers == NULL || idle == NULL)
    abort ();
  for (size_t slot = 0; slot < depth; slot++) {
    buffers[slot] = malloc (block);
    if (buffers[slot] == NULL)
      abort ();
    memset (buffers[slot], 0x5a, block);
    idle[idle_count++] = slot;
  }

  const double start = seconds_of (CLOCK_MONOTONIC);
  const double start_cpu = seconds_of (CLOCK_PROCESS_CPUTIME_ID);
  uint64_t asked = 0, next_look = 0;
  int ending = 0;
  for (;;) {
    while (idle_count > 0 && !ending && (most == 0 || asked < most)) {
      const size_t slot = idle[--idle_count];
      const uint64_t at = (unsigned __int128) next_number (&random) * blocks >> 64;
      nbd_completion_callback callback = {
        .callback = done,
        .user_data = (void *)(uintptr_t) slot,
      };
      const int64_t cookie = writes
        ? nbd_aio_pwrite (nbd, buffers[slot], block, at * block, callback, 0)
        : nbd_aio_pread (nbd, buffers[slot], block, at * block, callback, 0);
      if (cookie == -1)
        fail ("submit");
      asked++;
    }
    if (idle_count == depth)
      break;
    if (nbd_poll (nbd, -1) == -1)
      fail ("poll");
    if (limit > 0 && answered >= next_look) {
      next_look = answered + 16;
      ending = seconds_of (CLOCK_MONOTONIC) - start >= limit;
    }
  }
  const double elapsed = seconds_of (CLOCK_MONOTONIC) - start;
  const double cpu = seconds_of (CLOCK_PROCESS_CPUTIME_ID) - start_cpu;

  nbd_shutdown (nbd, 0);
  nbd_close (nbd);
  printf ("{\"requests\": %llu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n",
          (unsigned long long) answered, elapsed, cpu);
  return EXIT_SUCCESS;
}
