/* A library to preload into a process. It makes the disk under the folder PAYWARDEN_SLOW_PATH slow: a write (or sync) of
 * a file in it takes PAYWARDEN_SLOW_WRITE_US (PAYWARDEN_SLOW_SYNC_US) microseconds longer, while a file named
 * PAYWARDEN_SLOW_SWITCH with ".write" (".sync") exists. Made for perf/faults.py; it needs no root and no special file
 * system. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_in_folder(int fd, const char *folder) {
  char name[64], path[4096];
  ssize_t length;
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  length = readlink(name, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strncmp(path, folder, strlen(folder)) == 0;
}

static void wait_if_slow(int fd, const char *ending, const char *time_name) {
  const char *folder = getenv("PAYWARDEN_SLOW_PATH"), *prefix = getenv("PAYWARDEN_SLOW_SWITCH");
  const char *time = getenv(time_name);
  char file[4096];
  if (folder == NULL || prefix == NULL || time == NULL) return;
  snprintf(file, sizeof file, "%s%s", prefix, ending);
  if (access(file, F_OK) == 0 && is_in_folder(fd, folder)) usleep((useconds_t)atoi(time));
}

ssize_t write(int fd, const void *bytes, size_t count) {
  static ssize_t (*next)(int, const void *, size_t);
  if (next == NULL) next = dlsym(RTLD_NEXT, "write");
  wait_if_slow(fd, ".write", "PAYWARDEN_SLOW_WRITE_US");
  return next(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  static ssize_t (*next)(int, const struct iovec *, int);
  if (next == NULL) next = dlsym(RTLD_NEXT, "writev");
  wait_if_slow(fd, ".write", "PAYWARDEN_SLOW_WRITE_US");
  return next(fd, parts, count);
}

int fdatasync(int fd) {
  static int (*next)(int);
  if (next == NULL) next = dlsym(RTLD_NEXT, "fdatasync");
  wait_if_slow(fd, ".sync", "PAYWARDEN_SLOW_SYNC_US");
  return next(fd);
}

int fsync(int fd) {
  static int (*next)(int);
  if (next == NULL) next = dlsym(RTLD_NEXT, "fsync");
  wait_if_slow(fd, ".sync", "PAYWARDEN_SLOW_SYNC_US");
  return next(fd);
}
