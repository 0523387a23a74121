/* out = x w^T (+ out) in split bfloat16: every float32 is the sum of two bfloat16, high and low, and
 * of the four products of halves the three that matter are made by AMX, with float32 sums.
 *
 * Tiles hold 16 rows of 32 bfloat16. Those of x and w are laid out one after the other, high and low
 * side by side, in `room`; four tiles of the result stay in registers while two of x and two of w
 * pass by.
 */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROWS 16
#define DEPTH 32
#define TILE (ROWS * DEPTH) /* bfloat16 numbers */
#define PANEL 128           /* rows of x */

static long up(long count, long step) { return (count + step - 1) / step * step; }

/* Ask the system for the tile registers. 0 when they may be used. */
int split_ready(void) {
    return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */);
}

/* bfloat16 numbers of `room` that a product needs. */
long split_room(long rows, long columns, long depth) {
    long most = rows < PANEL ? up(rows, 2 * ROWS) : PANEL;
    return 2 * (most + up(columns, 2 * ROWS)) * up(depth, DEPTH);
}

static void halves(const float *from, long count, __m512i *high, __m512i *low) {
    float padded[DEPTH];
    if (count < DEPTH) {
        memset(padded, 0, sizeof padded);
        if (count > 0) memcpy(padded, from, count * sizeof *from);
        from = padded;
    }
    __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
    b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
    *high = both;
    *low = (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

/* Rows as AMX takes its left operand: a row of a tile is a row of 32 numbers. */
static void pack_left(const float *x, long stride, long rows, long depth, uint16_t *to) {
    for (long row = 0; row < up(rows, 2 * ROWS); row++)
        for (long k = 0; k < depth; k += DEPTH) {
            __m512i high, low;
            halves(x + row * stride + k, row < rows ? depth - k : 0, &high, &low);
            long tile = (row / ROWS) * (up(depth, DEPTH) / DEPTH) + k / DEPTH;
            uint16_t *at = to + 2 * tile * TILE + row % ROWS * DEPTH;
            _mm512_store_si512(at, high);
            _mm512_store_si512(at + TILE, low);
        }
}

static void turn(uint32_t square[ROWS][ROWS], uint32_t *to) {
    __m512i step = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
        _mm512_set1_epi32(ROWS));
    for (int pair = 0; pair < ROWS; pair++)
        _mm512_store_si512(to + pair * ROWS, _mm512_i32gather_epi32(step, &square[0][pair], 4));
}

/* Rows as AMX takes its right operand: a row of a tile is a pair of numbers from each of 16 rows. */
static void pack_right(const float *w, long stride, long rows, long depth, uint16_t *to) {
    uint32_t high[ROWS][ROWS] __attribute__((aligned(64)));
    uint32_t low[ROWS][ROWS] __attribute__((aligned(64)));
    for (long block = 0; block < up(rows, 2 * ROWS); block += ROWS)
        for (long k = 0; k < depth; k += DEPTH) {
            for (long row = 0; row < ROWS; row++) {
                __m512i one, other;
                long count = block + row < rows ? depth - k : 0;
                halves(w + (block + row) * stride + k, count, &one, &other);
                _mm512_store_si512(high[row], one);
                _mm512_store_si512(low[row], other);
            }
            long tile = (block / ROWS) * (up(depth, DEPTH) / DEPTH) + k / DEPTH;
            turn(high, (uint32_t *)(to + 2 * tile * TILE));
            turn(low, (uint32_t *)(to + (2 * tile + 1) * TILE));
        }
}

static void store(const float *tile, float *out, long stride, long rows, long columns, int add) {
    if (columns <= 0) return;
    __mmask16 mask = columns >= ROWS ? 0xffff : (__mmask16)((1u << columns) - 1);
    for (long row = 0; row < rows && row < ROWS; row++) {
        __m512 value = _mm512_load_ps(tile + row * ROWS);
        float *at = out + row * stride;
        if (add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, at));
        _mm512_mask_storeu_ps(at, mask, value);
    }
}

/* Two tiles of x, in registers 4 and 5, times two of w, in 6 and 7, added to 0 to 3. The names of
 * registers must be constants, so this is no function. */
#define MULTIPLY()               \
    do {                         \
        _tile_dpbf16ps(0, 4, 6); \
        _tile_dpbf16ps(1, 4, 7); \
        _tile_dpbf16ps(2, 5, 6); \
        _tile_dpbf16ps(3, 5, 7); \
    } while (0)

/* Some rows of the product, few enough for their tiles to stay in the cache. */
static void panel(const uint16_t *left, const uint16_t *right, long steps, float *out,
                  long out_stride, long rows, long columns, int add) {
    float tiles[4][ROWS * ROWS] __attribute__((aligned(64)));
    for (long column = 0; column < columns; column += 2 * ROWS)
        for (long row = 0; row < rows; row += 2 * ROWS) {
            const uint16_t *a = left + 2 * (row / ROWS) * steps * TILE, *c = a + 2 * steps * TILE;
            const uint16_t *b = right + 2 * (column / ROWS) * steps * TILE, *d = b + 2 * steps * TILE;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (long k = 0; k < 2 * steps * TILE; k += 2 * TILE) {
                _tile_loadd(4, a + k, 64);
                _tile_loadd(5, c + k, 64);
                _tile_loadd(6, b + k + TILE, 64);
                _tile_loadd(7, d + k + TILE, 64);
                MULTIPLY();
                _tile_loadd(6, b + k, 64);
                _tile_loadd(7, d + k, 64);
                MULTIPLY();
                _tile_loadd(4, a + k + TILE, 64);
                _tile_loadd(5, c + k + TILE, 64);
                MULTIPLY();
            }
            _tile_stored(0, tiles[0], 64);
            _tile_stored(1, tiles[1], 64);
            _tile_stored(2, tiles[2], 64);
            _tile_stored(3, tiles[3], 64);
            __asm__ volatile("" ::: "memory");
            float *at = out + row * out_stride + column;
            store(tiles[0], at, out_stride, rows - row, columns - column, add);
            store(tiles[1], at + ROWS, out_stride, rows - row, columns - column - ROWS, add);
            at += ROWS * out_stride;
            store(tiles[2], at, out_stride, rows - row - ROWS, columns - column, add);
            store(tiles[3], at + ROWS, out_stride, rows - row - ROWS, columns - column - ROWS, add);
        }
}

struct shape {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* out (rows, columns) = x (rows, depth) times the transpose of w (columns, depth), or added to out.
 * Strides count numbers from row to row; `room` is aligned to 64 bytes. */
void split_product(const float *x, long x_stride, const float *w, long w_stride, float *out,
                   long out_stride, long rows, long columns, long depth, int add, uint16_t *room) {
    long steps = up(depth, DEPTH) / DEPTH;
    long most = rows < PANEL ? up(rows, 2 * ROWS) : PANEL;
    uint16_t *left = room, *right = room + 2 * most * steps * DEPTH;
    struct shape shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        shape.bytes[tile] = 2 * DEPTH;
        shape.rows[tile] = ROWS;
    }
    pack_right(w, w_stride, columns, depth, right);
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shape);
    for (long first = 0; first < rows; first += PANEL) {
        long here = rows - first < PANEL ? rows - first : PANEL;
        pack_left(x + first * x_stride, x_stride, here, depth, left);
        __asm__ volatile("" ::: "memory");
        panel(left, right, steps, out + first * out_stride, out_stride, here, columns, add);
    }
    _tile_release();
}
