#include "native/import_slot.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace graph_train {

namespace {

struct Search {
  const char* library;
  const char* symbol;
  void** slot;
};

// glibc stores most addresses of the dynamic section absolute, others relative to the library's base.
uintptr_t absolute(uintptr_t base, uintptr_t address) { return address < base ? base + address : address; }

void** slot_in(const dl_phdr_info& info, const ElfW(Dyn) * entry, const char* symbol) {
  uintptr_t names = 0, symbols = 0, relocations = 0, bytes = 0;
  for (; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_STRTAB) names = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_SYMTAB) symbols = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_JMPREL) relocations = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_PLTRELSZ) bytes = entry->d_un.d_val;
  }
  if (names == 0 || symbols == 0 || relocations == 0) return nullptr;
  const auto* table = reinterpret_cast<const ElfW(Rela)*>(relocations);
  for (size_t i = 0; i < bytes / sizeof(*table); ++i) {
    const auto& imported = reinterpret_cast<const ElfW(Sym)*>(symbols)[ELF64_R_SYM(table[i].r_info)];
    if (std::strcmp(reinterpret_cast<const char*>(names) + imported.st_name, symbol) == 0) {
      return reinterpret_cast<void**>(info.dlpi_addr + table[i].r_offset);
    }
  }
  return nullptr;
}

int search_library(dl_phdr_info* info, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* file = slash == nullptr ? info->dlpi_name : slash + 1;
  if (std::strncmp(file, search->library, std::strlen(search->library)) != 0) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    search->slot = slot_in(*info, dynamic, search->symbol);
  }
  return 1;
}

}  // namespace

void** import_slot(const char* library, const char* symbol) {
  Search search{library, symbol, nullptr};
  dl_iterate_phdr(search_library, &search);
  if (search.slot == nullptr) return nullptr;
  // Some builds write-protect these slots once they are filled.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  void* start = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(search.slot) / page * page);
  return mprotect(start, page, PROT_READ | PROT_WRITE) == 0 ? search.slot : nullptr;
}

}  // namespace graph_train
