// Rows of activations in the tile layout that the linear kernels read.
#include "model.h"

namespace farthing {

void Activations::shape(const Kernels& kernels, int rows, int rows_max, int inputs, int part, Format format) {
  const int tiles = (rows + rows_max - 1) / rows_max;
  const bool has_places = format == Format::q8 && rows >= kernels.rows_whole;  // whole tiles, and a last one for the rest
  tiles_.resize(tiles + 1);
  int places = 0;
  for (int t = 0; t <= tiles; ++t) {
    const int first = t == tiles ? rows : has_places ? t * rows_max : static_cast<int>(static_cast<std::int64_t>(rows) * t / tiles);
    if (t) {
      Tile& before = tiles_[t - 1];
      before.rows = first - before.first;  // heights differ by one at most where there are no whole tiles
      before.places = has_places && before.rows >= kernels.rows_whole ? kRowsMax : before.rows;
      places += before.places;
    }
    tiles_[t] = {first, 0, 0, static_cast<std::size_t>(places)};
  }
  inputs_ = inputs;
  part_ = part;
  parts_ = inputs / part;
  unit_ = kernels.unit;
  planes_ = format == Format::q8 && kernels.is_wide ? 2 : 1;
  width_ = format == Format::f32 ? inputs : padded(inputs, unit_) * planes_;
  format_ = format;
  const std::size_t n = places, size = n * width_ * (format == Format::f32 ? sizeof(float) : 1);
  if (values_.size() < size) values_.resize(size);
  if (format == Format::f32) return;
  if (scales_.size() < n * (inputs / part)) scales_.resize(n * (inputs / part));
  if (offsets_.size() < n * (inputs / part)) offsets_.resize(n * (inputs / part));
  if (sums_.size() < n * (inputs / kTile)) sums_.resize(n * (inputs / kTile));
  if (owed_.size() < n * (inputs / kTile)) owed_.resize(n * (inputs / kTile));
}

ActivationTile Activations::tile(int index) const {
  const std::size_t at = tiles_[index].place;
  return {values_.data() + at * width_ * (format_ == Format::f32 ? sizeof(float) : 1), scales_.data() + at * parts_,
          offsets_.data() + at * parts_, sums_.data() + at * (inputs_ / kTile), owed_.data() + at * (inputs_ / kTile)};
}

void Activations::put(const Kernels& kernels, int tile, int row, const float* x, int from, int count) {
  const int column = row - first(tile), height = tiles_[tile].places;
  const std::size_t at = tiles_[tile].place;
  if (format_ == Format::f32) {
    float* out = reinterpret_cast<float*>(values_.data()) + at * inputs_ + column;
    for (int i = 0; i < count; ++i) out[static_cast<std::size_t>(from + i) * height] = x[i];
    return;
  }
  const std::size_t part = from / part_, parts = parts_, units = inputs_ / kTile;
  (planes_ == 2 ? kernels.quantise_wide : kernels.quantise)(x, count, part_,
                   {values_.data() + at * width_ + column * unit_, from,
                    scales_.data() + at * parts + part * height + column,
                    offsets_.data() + at * parts + part * height + column,
                    sums_.data() + at * units + static_cast<std::size_t>(from / kTile) * height + column,
                    owed_.data() + at * units + static_cast<std::size_t>(from / kTile) * height + column, height});
}

void Activations::will_put(int tile, int from, int count) {
  if (format_ == Format::f32) return;
  const std::size_t at = tiles_[tile].place, height = tiles_[tile].places, part = from / part_, parts = parts_;
  const std::size_t units = inputs_ / kTile, scales = count / part_ * height;
  will_write(values_.data() + at * width_ + from / unit_ * unit_ * height * planes_, count * height * planes_);
  will_write(scales_.data() + at * parts + part * height, scales * sizeof(float));
  will_write(offsets_.data() + at * parts + part * height, scales * sizeof(std::int32_t));
  will_write(sums_.data() + at * units + from / kTile * height, count / kTile * height * sizeof(float));
  will_write(owed_.data() + at * units + from / kTile * height, count / kTile * height * sizeof(std::int32_t));
}

}  // namespace farthing
