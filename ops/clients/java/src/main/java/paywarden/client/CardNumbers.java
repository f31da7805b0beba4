package paywarden.client;

/** Tells a card's number from a token, by the rules of the service. */
final class CardNumbers {
    private static final int DIGITS_MIN = 13, DIGITS_MAX = 19;
    /** The first four digits (from, to) and the lengths (from, to) of card networks' numbers. */
    private static final int[][] NETWORKS = {
        {2200, 2204, 16, 19},
        {2221, 2720, 16, 16},
        {3000, 3059, 14, 19},
        {3095, 3095, 14, 19},
        {3400, 3499, 15, 15},
        {3528, 3589, 16, 19},
        {3600, 3699, 14, 19},
        {3700, 3799, 15, 15},
        {3800, 3999, 14, 19},
        {4000, 4999, 13, 19},
        {5000, 5099, 13, 19},
        {5100, 5599, 16, 16},
        {5600, 5899, 13, 19},
        {6000, 6999, 13, 19},
        {8171, 8171, 16, 19},
    };

    private CardNumbers() {}

    /**
     * Returns whether a text of this field is refused: without spaces and hyphens, 13 to 19 digits with a right check
     * digit. Other texts than a {@code card_id} must also begin as the numbers of a card network do.
     */
    static boolean isCardNumber(String field, String text) {
        if (text.length() < DIGITS_MIN) {
            return false;
        }
        int[] digits = new int[DIGITS_MAX];
        int count = 0;
        for (int place = 0; place < text.length(); place++) {
            char character = text.charAt(place);
            if (character == ' ' || character == '-') {
                continue;
            }
            if (character < '0' || character > '9' || count == DIGITS_MAX) {
                return false;
            }
            digits[count++] = character - '0';
        }
        if (count < DIGITS_MIN || !passesLuhn(digits, count)) {
            return false;
        }
        if (field.equals("card_id")) {
            return true;
        }
        int begin = 1000 * digits[0] + 100 * digits[1] + 10 * digits[2] + digits[3];
        for (int[] network : NETWORKS) {
            if (network[0] <= begin && begin <= network[1] && network[2] <= count && count <= network[3]) {
                return true;
            }
        }
        return false;
    }

    private static boolean passesLuhn(int[] digits, int count) {
        int sum = 0;
        for (int place = 0; place < count; place++) {
            int value = digits[count - 1 - place];
            if (place % 2 == 1) {
                value = value > 4 ? 2 * value - 9 : 2 * value;
            }
            sum += value;
        }
        return sum % 10 == 0;
    }
}
