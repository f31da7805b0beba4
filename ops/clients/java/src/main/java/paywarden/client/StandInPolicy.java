package paywarden.client;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Decides in the service's place: limits by amount, merchant category and card. {@link #parse} makes one. */
public final class StandInPolicy {
    static final int LIMITS_MAX = 64, WINDOW_S_MAX = 86_400, COUNT_MAX = 100;

    private static final Pattern NAME = Pattern.compile("[a-z0-9_-]{1,40}");
    private static final Pattern CURRENCY = Pattern.compile("[A-Z]{3}|\\*");
    private static final Pattern MCC = Pattern.compile("([0-9]{4})(?:-([0-9]{4}))?");
    private static final List<String> POLICY_KEYS = List.of("name", "otherwise", "limits");
    private static final List<String> CONDITIONS =
            List.of("amount_over", "mcc_in", "card_count_over", "card_sum_over");
    private static final List<String> LIMIT_KEYS =
            List.of("name", "action", "amount_over", "mcc_in", "card_count_over", "card_sum_over", "window_s");

    /** One limit. A condition that is null asks nothing. A range of codes is two texts, both included. */
    record Limit(
            String name,
            String action,
            Map<String, Double> amountOver,
            List<String[]> mccIn,
            boolean mccMayBeMissing,
            Double cardCountOver,
            Map<String, Double> cardSumOver,
            double windowMs) {}

    final String otherwise;
    final List<Limit> limits;
    final double windowMs;

    private StandInPolicy(String otherwise, List<Limit> limits) {
        this.otherwise = otherwise;
        this.limits = limits;
        windowMs = limits.stream().mapToDouble(Limit::windowMs).max().orElse(0);
    }

    /** Returns the policy that sends every payment to review. */
    public static StandInPolicy reviewAll() {
        return new StandInPolicy(Decision.REVIEW, List.of());
    }

    /** Returns the policy of a JSON text. Raises WrongSettings with the path of what is wrong. */
    public static StandInPolicy parse(String text) {
        try {
            return of(Json.parse(text));
        } catch (Json.NotJson error) {
            throw new WrongSettings("", "the policy is not JSON");
        }
    }

    static StandInPolicy of(Object value) {
        Map<?, ?> found = objectOf(value, "");
        requireKnown(found, POLICY_KEYS, "");
        requireName(found, "");
        if (!(found.get("otherwise") instanceof String otherwise) || !Decision.ACTIONS.contains(otherwise)) {
            throw new WrongSettings("otherwise", "wanted one of " + Decision.ACTIONS);
        }
        Object listed = found.containsKey("limits") ? found.get("limits") : List.of();
        if (!(listed instanceof List<?> list) || list.size() > LIMITS_MAX) {
            throw new WrongSettings("limits", "wanted a list of at most " + LIMITS_MAX);
        }
        List<Limit> limits = new ArrayList<>();
        for (int place = 0; place < list.size(); place++) {
            limits.add(limitOf(list.get(place), "limits[" + place + "]"));
        }
        for (int place = 0; place < limits.size(); place++) {
            String name = limits.get(place).name();
            if (limits.subList(0, place).stream().anyMatch(other -> other.name().equals(name))) {
                throw new WrongSettings("limits[" + place + "].name", "wanted a name that no other limit has");
            }
        }
        return new StandInPolicy(otherwise, limits);
    }

    private static Limit limitOf(Object value, String at) {
        Map<?, ?> found = objectOf(value, at);
        requireKnown(found, LIMIT_KEYS, at);
        String name = requireName(found, at);
        if (!(found.get("action") instanceof String action)
                || !(action.equals(Decision.REVIEW) || action.equals(Decision.DECLINE))) {
            throw new WrongSettings(at + ".action", "wanted review or decline");
        }
        if (CONDITIONS.stream().noneMatch(found::containsKey)) {
            throw new WrongSettings(at, "wanted a condition: one of " + CONDITIONS);
        }
        boolean[] mayBeMissing = {false};
        List<String[]> mccs =
                found.containsKey("mcc_in") ? mccsOf(found.get("mcc_in"), at + ".mcc_in", mayBeMissing) : null;
        boolean isByCard = found.containsKey("card_count_over") || found.containsKey("card_sum_over");
        if (isByCard != found.containsKey("window_s")) {
            throw new WrongSettings(
                    at + ".window_s", "wanted with card_count_over or card_sum_over, and only there");
        }
        return new Limit(
                name,
                action,
                amountsOf(found, "amount_over", at),
                mccs,
                mayBeMissing[0],
                found.containsKey("card_count_over")
                        ? whole(found.get("card_count_over"), at + ".card_count_over", 0, COUNT_MAX)
                        : null,
                amountsOf(found, "card_sum_over", at),
                isByCard ? 1000 * whole(found.get("window_s"), at + ".window_s", 1, WINDOW_S_MAX) : 0);
    }

    private static Map<?, ?> objectOf(Object value, String at) {
        if (!(value instanceof Map<?, ?> found)) {
            throw new WrongSettings(at, "wanted an object");
        }
        return found;
    }

    private static void requireKnown(Map<?, ?> found, List<String> names, String at) {
        for (Object name : found.keySet()) {
            if (!names.contains(name)) {
                throw new WrongSettings(pathOf(at, (String) name), "is unknown; wanted one of " + names);
            }
        }
    }

    private static String pathOf(String at, String name) {
        return at.isEmpty() ? name : at + "." + name;
    }

    private static String requireName(Map<?, ?> found, String at) {
        if (!(found.get("name") instanceof String name) || !NAME.matcher(name).matches()) {
            throw new WrongSettings(pathOf(at, "name"), "wanted 1 to 40 of a to z, 0 to 9, _ and -");
        }
        return name;
    }

    private static double whole(Object value, String at, double least, double most) {
        if (Json.isNumber(value)) {
            double number = ((Number) value).doubleValue();
            if (number >= least && number <= most && number == Math.floor(number)) {
                return number;
            }
        }
        throw new WrongSettings(at, String.format("wanted a whole number from %.0f to %.0f", least, most));
    }

    private static Map<String, Double> amountsOf(Map<?, ?> limit, String name, String below) {
        if (!limit.containsKey(name)) {
            return null;
        }
        String at = below + "." + name;
        if (!(limit.get(name) instanceof Map<?, ?> found) || found.isEmpty()) {
            throw new WrongSettings(at, "wanted amounts by currency, such as {\"EUR\": 20000}");
        }
        Map<String, Double> amounts = new HashMap<>();
        found.forEach(
                (key, amount) -> {
                    String currency = (String) key;
                    if (!CURRENCY.matcher(currency).matches()) {
                        throw new WrongSettings(at + "." + currency, "wanted three capital letters, or \"*\"");
                    }
                    amounts.put(currency, whole(amount, at + "." + currency, 0, Payment.AMOUNT_MAX));
                });
        return amounts;
    }

    private static List<String[]> mccsOf(Object value, String at, boolean[] mayBeMissing) {
        if (!(value instanceof List<?> found) || found.isEmpty()) {
            throw new WrongSettings(at, "wanted a list such as [\"7995\", \"7800-7802\", \"missing\"]");
        }
        List<String[]> pairs = new ArrayList<>();
        for (int place = 0; place < found.size(); place++) {
            String text = found.get(place) instanceof String one ? one : "";
            if (text.equals("missing")) {
                mayBeMissing[0] = true;
                continue;
            }
            Matcher match = MCC.matcher(text);
            if (!match.matches() || (match.group(2) != null && match.group(2).compareTo(match.group(1)) < 0)) {
                throw new WrongSettings(
                        at + "[" + place + "]", "wanted four digits, a range of them, or \"missing\"");
            }
            pairs.add(new String[] {match.group(1), match.group(2) == null ? match.group(1) : match.group(2)});
        }
        return pairs;
    }
}
