// Preloaded (LD_PRELOAD) into a process: counts its changes to files below one directory, and lets
// the k-th of them fail, end short, or be the last thing that the process does.
//
// Read from the environment when loaded, and again by fault_shim_reload():
//   TE_FAULT_DIR     absolute; nothing is counted without it
//   TE_FAULT_AT      k, from 1; 0: only count
//   TE_FAULT_MODE    kill_before | kill_after | fail | short
//   TE_FAULT_ERRNO   of a failure, a number
//   TE_FAULT_STICKY  1: all later ones fail as well
//   TE_FAULT_LOG     a file that gets a line "k operation path" for each
//
// "short" is half of a write, as write(2) may do at any time; what is no write fails instead.
// ENOSPC spares what needs no room.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { kNone, kKillBefore, kKillAfter, kFail, kShort };

static char directory[PATH_MAX];
static size_t directory_length;
static long at;
static enum mode mode;
static int error_number;
static bool sticky;
static int log_fd = -1;
static atomic_long count;

static const char* setting(const char* name) {
  const char* value = getenv(name);
  return value == NULL ? "" : value;
}

__attribute__((visibility("default"))) long fault_shim_count(void) { return atomic_load(&count); }

__attribute__((visibility("default"))) void fault_shim_reload(void) {
  directory_length = 0;  // nothing is counted meanwhile
  if (log_fd >= 0) syscall(SYS_close, log_fd);
  log_fd = -1;
  atomic_store(&count, 0);
  at = atol(setting("TE_FAULT_AT"));
  error_number = atoi(setting("TE_FAULT_ERRNO"));
  sticky = strcmp(setting("TE_FAULT_STICKY"), "1") == 0;
  const char* name = setting("TE_FAULT_MODE");
  mode = strcmp(name, "kill_before") == 0  ? kKillBefore
         : strcmp(name, "kill_after") == 0 ? kKillAfter
         : strcmp(name, "fail") == 0       ? kFail
         : strcmp(name, "short") == 0      ? kShort
                                           : kNone;
  if (*setting("TE_FAULT_LOG") != '\0') {
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, setting("TE_FAULT_LOG"),
                          O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  }
  const size_t length = strlen(setting("TE_FAULT_DIR"));
  if (length == 0 || length >= sizeof(directory)) return;
  memcpy(directory, setting("TE_FAULT_DIR"), length + 1);
  directory_length = length;
}

__attribute__((constructor)) static void load(void) { fault_shim_reload(); }

static bool is_below(const char* path) {
  return directory_length != 0 && strncmp(path, directory, directory_length) == 0 &&
         (path[directory_length] == '/' || path[directory_length] == '\0');
}

static bool path_of_fd(int fd, char* out) {
  char name[64];
  snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
  const long length = syscall(SYS_readlinkat, AT_FDCWD, name, out, PATH_MAX - 1);
  if (length < 0) return false;
  out[length] = '\0';
  return true;
}

static bool resolve(int dir_fd, const char* path, char* out) {
  if (path == NULL) return false;
  if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
  char base[PATH_MAX];
  if (dir_fd == AT_FDCWD) {
    if (syscall(SYS_getcwd, base, sizeof(base)) < 0) return false;
  } else if (!path_of_fd(dir_fd, base)) {
    return false;
  }
  return snprintf(out, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

static void die(void) {
  syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  for (;;) pause();
}

struct verdict {
  bool fail;   // with error_number in errno
  bool half;   // of the bytes are written
  bool after;  // the process ends after it
};

static struct verdict judge(const char* operation, const char* path, bool needs_room, bool writes) {
  struct verdict verdict = {false, false, false};
  if (!is_below(path)) return verdict;
  const long number = atomic_fetch_add(&count, 1) + 1;
  if (log_fd >= 0) {
    char line[PATH_MAX + 64];
    const int length = snprintf(line, sizeof(line), "%ld %s %s\n", number, operation, path);
    if (length > 0) syscall(SYS_write, log_fd, line, (size_t)length);
  }
  if (at == 0 || number < at || (number > at && !sticky)) return verdict;
  if (mode == kKillBefore) die();
  verdict.after = mode == kKillAfter;
  verdict.half = mode == kShort && writes;
  verdict.fail =
      (mode == kFail && (error_number != ENOSPC || needs_room)) || (mode == kShort && !writes);
  if (verdict.fail) errno = error_number;
  return verdict;
}

static struct verdict judge_path(const char* operation, int dir_fd, const char* path,
                                 bool needs_room) {
  char full[PATH_MAX];
  const struct verdict nothing = {false, false, false};
  if (directory_length == 0 || !resolve(dir_fd, path, full)) return nothing;
  return judge(operation, full, needs_room, false);
}

static struct verdict judge_fd(const char* operation, int fd, bool needs_room, bool writes) {
  char full[PATH_MAX];
  const struct verdict nothing = {false, false, false};
  if (directory_length == 0 || !path_of_fd(fd, full)) return nothing;
  return judge(operation, full, needs_room, writes);
}

#define EXPORT __attribute__((visibility("default")))

#define JUDGED(verdict_, type, call)      \
  do {                                    \
    const struct verdict v_ = (verdict_); \
    if (v_.fail) return -1;               \
    const type result_ = (call);          \
    const int errno_ = errno;             \
    if (v_.after) die();                  \
    errno = errno_;                       \
    return result_;                       \
  } while (false)

// --- opening -------------------------------------------------------------------------------------

static bool opens_for_change(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
}

static int open_judged(int dir_fd, const char* path, int flags, mode_t permissions) {
  if (!opens_for_change(flags)) {
    return (int)syscall(SYS_openat, dir_fd, path, flags, permissions);
  }
  JUDGED(judge_path("open", dir_fd, path, (flags & O_CREAT) != 0), int,
         (int)syscall(SYS_openat, dir_fd, path, flags, permissions));
}

static mode_t permissions_of(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? (mode_t)va_arg(arguments, int) : 0;
}

#define OPEN_AT_PATH(name)                                       \
  EXPORT int name(const char* path, int flags, ...) {            \
    va_list arguments;                                           \
    va_start(arguments, flags);                                  \
    const mode_t permissions = permissions_of(flags, arguments); \
    va_end(arguments);                                           \
    return open_judged(AT_FDCWD, path, flags, permissions);      \
  }
OPEN_AT_PATH(open)
OPEN_AT_PATH(open64)

#define OPEN_AT_DIRECTORY(name)                                   \
  EXPORT int name(int dir_fd, const char* path, int flags, ...) { \
    va_list arguments;                                            \
    va_start(arguments, flags);                                   \
    const mode_t permissions = permissions_of(flags, arguments);  \
    va_end(arguments);                                            \
    return open_judged(dir_fd, path, flags, permissions);         \
  }
OPEN_AT_DIRECTORY(openat)
OPEN_AT_DIRECTORY(openat64)

EXPORT int creat(const char* path, mode_t permissions) {
  return open_judged(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, permissions);
}

// --- writing -------------------------------------------------------------------------------------

static size_t shortened(size_t size, struct verdict verdict) {
  return verdict.half && size > 1 ? size / 2 : size;
}

EXPORT ssize_t write(int fd, const void* data, size_t size) {
  const struct verdict verdict = judge_fd("write", fd, true, true);
  JUDGED(verdict, ssize_t, syscall(SYS_write, fd, data, shortened(size, verdict)));
}

#define PWRITE(name)                                                                             \
  EXPORT ssize_t name(int fd, const void* data, size_t size, off_t offset) {                     \
    const struct verdict verdict = judge_fd("pwrite", fd, true, true);                           \
    JUDGED(verdict, ssize_t, syscall(SYS_pwrite64, fd, data, shortened(size, verdict), offset)); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

EXPORT ssize_t writev(int fd, const struct iovec* parts, int num_parts) {
  const struct verdict verdict = judge_fd("writev", fd, true, num_parts > 1);
  const int num_written = verdict.half ? num_parts / 2 : num_parts;
  JUDGED(verdict, ssize_t, syscall(SYS_writev, fd, parts, num_written));
}

EXPORT ssize_t sendfile(int out_fd, int in_fd, off_t* offset, size_t size) {
  const struct verdict verdict = judge_fd("sendfile", out_fd, true, true);
  JUDGED(verdict, ssize_t, syscall(SYS_sendfile, out_fd, in_fd, offset, shortened(size, verdict)));
}

EXPORT ssize_t sendfile64(int out_fd, int in_fd, off64_t* offset, size_t size) {
  return sendfile(out_fd, in_fd, offset, size);
}

EXPORT ssize_t copy_file_range(int in_fd, off64_t* in, int out_fd, off64_t* out, size_t size,
                               unsigned flags) {
  const struct verdict verdict = judge_fd("copy_file_range", out_fd, true, true);
  JUDGED(verdict, ssize_t,
         syscall(SYS_copy_file_range, in_fd, in, out_fd, out, shortened(size, verdict), flags));
}

#define FTRUNCATE(name)                                                                            \
  EXPORT int name(int fd, off_t length) {                                                          \
    JUDGED(judge_fd("ftruncate", fd, false, false), int, (int)syscall(SYS_ftruncate, fd, length)); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define TRUNCATE(name)                                         \
  EXPORT int name(const char* path, off_t length) {            \
    JUDGED(judge_path("truncate", AT_FDCWD, path, false), int, \
           (int)syscall(SYS_truncate, path, length));          \
  }
TRUNCATE(truncate)
TRUNCATE(truncate64)

#define FALLOCATE(name)                                           \
  EXPORT int name(int fd, int how, off_t offset, off_t length) {  \
    JUDGED(judge_fd("fallocate", fd, true, false), int,           \
           (int)syscall(SYS_fallocate, fd, how, offset, length)); \
  }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

// --- durability ----------------------------------------------------------------------------------

EXPORT int fsync(int fd) {
  JUDGED(judge_fd("fsync", fd, true, false), int, (int)syscall(SYS_fsync, fd));
}

EXPORT int fdatasync(int fd) {
  JUDGED(judge_fd("fdatasync", fd, true, false), int, (int)syscall(SYS_fdatasync, fd));
}

// --- directories ---------------------------------------------------------------------------------

EXPORT int renameat(int from_fd, const char* from, int to_fd, const char* to) {
  JUDGED(judge_path("rename", to_fd, to, true), int,
         (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, 0));
}

EXPORT int rename(const char* from, const char* to) {
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

EXPORT int renameat2(int from_fd, const char* from, int to_fd, const char* to, unsigned flags) {
  JUDGED(judge_path("rename", to_fd, to, true), int,
         (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags));
}

EXPORT int linkat(int from_fd, const char* from, int to_fd, const char* to, int flags) {
  JUDGED(judge_path("link", to_fd, to, true), int,
         (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags));
}

EXPORT int link(const char* from, const char* to) {
  return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int symlinkat(const char* target, int dir_fd, const char* path) {
  JUDGED(judge_path("symlink", dir_fd, path, true), int,
         (int)syscall(SYS_symlinkat, target, dir_fd, path));
}

EXPORT int symlink(const char* target, const char* path) {
  return symlinkat(target, AT_FDCWD, path);
}

EXPORT int unlinkat(int dir_fd, const char* path, int flags) {
  JUDGED(judge_path("unlink", dir_fd, path, false), int,
         (int)syscall(SYS_unlinkat, dir_fd, path, flags));
}

EXPORT int unlink(const char* path) { return unlinkat(AT_FDCWD, path, 0); }

EXPORT int rmdir(const char* path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

EXPORT int mkdirat(int dir_fd, const char* path, mode_t permissions) {
  JUDGED(judge_path("mkdir", dir_fd, path, true), int,
         (int)syscall(SYS_mkdirat, dir_fd, path, permissions));
}

EXPORT int mkdir(const char* path, mode_t permissions) {
  return mkdirat(AT_FDCWD, path, permissions);
}
